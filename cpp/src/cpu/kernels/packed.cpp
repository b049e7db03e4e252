// SPDX-License-Identifier: Apache-2.0
// The product of activations and packed weights. Lanes are rows of the weight; codes turn into
// floats in registers, by a table where a vector holds sixteen entries, and by shifts elsewhere.
#include "packed.hpp"

#include "product.hpp"

namespace mlcalib::cpu::MLCALIB_ISA {
namespace {

// ---- One token: Σ scale · (Σ code · x − zero · Σ x), codes used where they are unpacked ----

// Two vectors of rows by four sums each: eight chains of additions.
constexpr int64_t kVectors = 2;
constexpr int64_t kChains = 4;
constexpr int64_t kRows = kVectors * kLanes;
static_assert(kPackedRows % kRows == 0);

// bfloat16 pairs have a table of sixteen codes only.
inline bool row_in_pairs(const PackedWeight& w, Element element) {
  return kPairs && element == Element::kBFloat16 && w.bits == 4;
}

// The padded token as T, and its sums over groups.
template <class To, class T>
void prepare_as(const T* x, const PackedWeight& w, To* to, float* sums) {
  for (int64_t g = 0; g < w.groups; ++g) {
    const int64_t count = group_columns(w, g), padded = steps_of(count) * kPackedColumns;
    float sum = 0;
    for (int64_t c = 0; c < count; ++c) {
      sum += to_float(x[c]);
      to[c] = convert<To>(x[c]);
    }
    for (int64_t c = count; c < padded; ++c) to[c] = To{};
    sums[g] = sum;
    x += count;
    to += padded;
  }
}

void prepare(const Activations& x, const PackedWeight& w, float* prepared) {
  float* sums = prepared + w.steps * kPackedColumns;
  if (row_in_pairs(w, x.element)) {
    return prepare_as(static_cast<const uint16_t*>(x.data), w,
                      reinterpret_cast<uint16_t*>(prepared), sums);
  }
  with_elements(x.element, x.data, [&](const auto* from) { prepare_as(from, w, prepared, sums); });
}

struct Nibbles {
  static constexpr int64_t kWords = 1;
  static inline void step(const int32_t* words, const float* x, Vec (&sum)[kChains][kVectors]) {
#pragma GCC unroll 2
    for (int64_t v = 0; v < kVectors; ++v) {
      const Mask word = load_words(words + v * kLanes);
#pragma GCC unroll 8
      for (int64_t p = 0; p < 8; ++p) {
        sum[p % kChains][v] += nibble(word, p) * broadcast(x[nibble_column(p)]);
      }
    }
  }
};

struct Octets {
  static constexpr int64_t kWords = 2;
  static inline void step(const int32_t* words, const float* x, Vec (&sum)[kChains][kVectors]) {
#pragma GCC unroll 2
    for (int64_t h = 0; h < kWords; ++h) {
#pragma GCC unroll 2
      for (int64_t v = 0; v < kVectors; ++v) {
        const Mask word = load_words(words + h * kPackedRows + v * kLanes);
#pragma GCC unroll 4
        for (int64_t p = 0; p < 4; ++p) {
          sum[p % kChains][v] += octet(word, p) * broadcast(x[4 * h + p]);
        }
      }
    }
  }
};

#ifdef __AVX512BF16__
struct NibblePairs {
  static constexpr int64_t kWords = 1;
  // x holds bfloat16: four pairs.
  static inline void step(const int32_t* words, const float* x, Vec (&sum)[kChains][kVectors]) {
#pragma GCC unroll 2
    for (int64_t v = 0; v < kVectors; ++v) {
      const Mask word = load_words(words + v * kLanes);
#pragma GCC unroll 4
      for (int64_t p = 0; p < 4; ++p) {
        sum[p % kChains][v] = Pairs::multiply_add(sum[p % kChains][v], x[p], nibble_pair(word, p));
      }
    }
  }
};
#endif

template <class Codes>
void row_tile(const float* x, const float* sums, int64_t x_step, const PackedWeight& w,
              const uint8_t* tile, float (&y)[kPackedRows]) {
  for (int64_t r = 0; r < kPackedRows; r += kRows) {
    const int32_t* words = reinterpret_cast<const int32_t*>(tile) + r;
    const float* at = x;
    Vec total[kVectors] = {};
    for (int64_t g = 0; g < w.groups; ++g) {
      Vec sum[kChains][kVectors] = {};
      for (int64_t steps = steps_of(group_columns(w, g)); steps > 0; --steps) {
        Codes::step(words, at, sum);
        words += Codes::kWords * kPackedRows;
        at += x_step;
      }
      for (int64_t v = 0; v < kVectors; ++v) {
        const int64_t row = r + v * kLanes;
        const Vec zero = load_zero(w, tile, g, row) * sums[g];
        total[v] +=
            load_scale(w, tile, g, row) * (sum[0][v] + sum[1][v] + (sum[2][v] + sum[3][v]) - zero);
      }
    }
    for (int64_t v = 0; v < kVectors; ++v) store(y + r + v * kLanes, total[v]);
  }
}

void row(const float* prepared, const PackedWeight& w, int64_t first, int64_t last,
         const PackedOutput& y) {
  const float* sums = prepared + w.steps * kPackedColumns;
  for (int64_t t = first; t < last; ++t) {
    const uint8_t* tile = w.data + t * w.tile_bytes;
    float result[kPackedRows];
    if (w.bits == 8) {
      row_tile<Octets>(prepared, sums, kPackedColumns, w, tile, result);
#ifdef __AVX512BF16__
    } else if (row_in_pairs(w, y.element)) {
      row_tile<NibblePairs>(prepared, sums, kPackedColumns / 2, w, tile, result);
#endif
    } else {
      row_tile<Nibbles>(prepared, sums, kPackedColumns, w, tile, result);
    }
    write(result, w, t * kPackedRows, 0, y);
  }
}

// ---- Many tokens: a panel of weights, times blocks of tokens ----

// Sums of a block fill the registers: 32 of AVX-512, 16 elsewhere.
constexpr int64_t kTokens = kLanes == 16 ? 12 : 6;
constexpr int64_t kChunk = 192 / kTokens;
constexpr int64_t kPanelSteps = 16;  // 16 KiB of floats
constexpr int64_t kStrips = kPackedRows / kRows;

inline bool block_in_pairs(Element element) { return kPairs && element == Element::kBFloat16; }

// Elements of four bytes that a step takes of a row: floats, or pairs.
inline int64_t step_elements(Element element) {
  return block_in_pairs(element) ? kPackedColumns / 2 : kPackedColumns;
}

// One token's elements, of `per_element` values each, kTokens elements apart.
template <class T, class To>
void pack_token(const T* x, const PackedWeight& w, int64_t per_element, To* to) {
  for (int64_t g = 0; g < w.groups; ++g) {
    const int64_t count = group_columns(w, g), padded = steps_of(count) * kPackedColumns;
    for (int64_t c = 0; c < padded; ++c) {
      to[c / per_element * kTokens * per_element + c % per_element] =
          c < count ? convert<To>(x[c]) : To{};
    }
    x += count;
    to += padded * kTokens;
  }
}

void pack(const Activations& x, const PackedWeight& w, int64_t first, int64_t last, float* packed) {
  for (int64_t block = first; block < last; ++block) {
    float* to = packed + block * kTokens * step_elements(x.element) * w.steps;
    for (int64_t t = 0; t < kTokens; ++t) {
      // Tokens beyond the last repeat it; their products are not written.
      const int64_t token = min_of(block * kTokens + t, x.tokens - 1);
      if (block_in_pairs(x.element)) {
        pack_token(static_cast<const uint16_t*>(x.data) + token * x.stride, w, 2,
                   reinterpret_cast<uint16_t*>(to) + 2 * t);
        continue;
      }
      with_elements(x.element, x.data,
                    [&](const auto* from) { pack_token(from + token * x.stride, w, 1, to + t); });
    }
  }
}

// code − zero of one column of some rows, or scale · (code − zero).
template <bool kScaled>
struct Level {
  Vec scale, zero;
  Vec operator()(Vec code) const {
    if constexpr (kScaled) return scale * (code - zero);
    return code - zero;
  }
};

// Steps [first, last) of group g's rows [row, row + kLanes), to panel [element][kRows].
template <bool kInPairs>
void fill(const PackedWeight& w, const uint8_t* tile, int64_t g, int64_t row, int64_t first,
          int64_t last, float* panel) {
  const Level<!kInPairs> level{load_scale(w, tile, g, row), load_zero(w, tile, g, row)};
  const int64_t words = w.bits / 4;
  const int32_t* from = reinterpret_cast<const int32_t*>(tile) + first * words * kPackedRows + row;
  for (int64_t s = first; s < last; ++s, from += words * kPackedRows) {
    Vec column[kPackedColumns];
    const Mask low = load_words(from);
    if (w.bits == 4) {
#pragma GCC unroll 8
      for (int64_t p = 0; p < 8; ++p) column[nibble_column(p)] = level(nibble(low, p));
    } else {
      const Mask high = load_words(from + kPackedRows);
#pragma GCC unroll 8
      for (int64_t c = 0; c < 8; ++c) column[c] = level(octet(c < 4 ? low : high, c % 4));
    }
    if constexpr (kInPairs) {
#pragma GCC unroll 4
      for (int64_t c = 0; c < 8; c += 2, panel += kRows) {
        store(panel, pair_of(column[c], column[c + 1]));
      }
    } else {
#pragma GCC unroll 8
      for (int64_t c = 0; c < 8; ++c, panel += kRows) store(panel, column[c]);
    }
  }
}

template <class Product>
inline void multiply(const float* panel, const float* x, int64_t count,
                     Vec (&sum)[kTokens][kVectors]) {
  for (int64_t i = 0; i < count; ++i) {
    Vec right[kVectors];
#pragma GCC unroll 2
    for (int64_t v = 0; v < kVectors; ++v) right[v] = load(panel + i * kRows + v * kLanes);
#pragma GCC unroll 12
    for (int64_t t = 0; t < kTokens; ++t) {
#pragma GCC unroll 2
      for (int64_t v = 0; v < kVectors; ++v) {
        sum[t][v] = Product::multiply_add(sum[t][v], x[i * kTokens + t], right[v]);
      }
    }
  }
}

// Adds the panel's share to the results of a block, [token][kPackedRows]. Pairs hold code − zero,
// exact in bfloat16, and are scaled here.
template <class Product, bool kInPairs>
inline void add_block(const float* panel, const float* x, int64_t count, const Vec* scale,
                      float* result) {
  Vec sum[kTokens][kVectors] = {};
  multiply<Product>(panel, x, count, sum);
  for (int64_t t = 0; t < kTokens; ++t, result += kPackedRows) {
    for (int64_t v = 0; v < kVectors; ++v) {
      const Vec part = kInPairs ? sum[t][v] * scale[v] : sum[t][v];
      store(result + v * kLanes, load(result + v * kLanes) + part);
    }
  }
}

template <class Product, bool kInPairs>
void blocks_of(const float* packed, const PackedWeight& w, const uint8_t* tile, int64_t first,
               int64_t last, float* result) {
  constexpr int64_t kElements = kInPairs ? kPackedColumns / 2 : kPackedColumns;  // of a step
  float panel[kPanelSteps * kElements * kRows];
  for (int64_t strip = 0; strip < kStrips; ++strip) {
    int64_t group = 0, group_end = steps_of(group_columns(w, 0));
    for (int64_t step = 0; step < w.steps;) {
      const int64_t begin = step, limit = min_of(begin + kPanelSteps, w.steps);
      Vec scale[kVectors];
      // A panel of pairs has one scale, and so one group.
      do {
        if (step == group_end) group_end += steps_of(group_columns(w, ++group));
        const int64_t end = min_of(limit, group_end);
        for (int64_t v = 0; v < kVectors; ++v) {
          const int64_t row = strip * kRows + v * kLanes;
          scale[v] = load_scale(w, tile, group, row);
          fill<kInPairs>(w, tile, group, row, step, end,
                         panel + (step - begin) * kElements * kRows + v * kLanes);
        }
        step = end;
      } while (!kInPairs && step < limit);
      for (int64_t b = first; b < last; ++b) {
        add_block<Product, kInPairs>(panel, packed + (b * w.steps + begin) * kElements * kTokens,
                                     (step - begin) * kElements, scale,
                                     result + (b - first) * kTokens * kPackedRows + strip * kRows);
      }
    }
  }
}

void blocks(const float* packed, const Activations& x, const PackedWeight& w, int64_t tile,
            int64_t first, int64_t last, const PackedOutput& y) {
  float result[kChunk * kTokens * kPackedRows];
  const int64_t tokens = min_of(last * kTokens, x.tokens) - first * kTokens;
  __builtin_memset(result, 0, (last - first) * kTokens * kPackedRows * sizeof(float));
  const uint8_t* codes = w.data + tile * w.tile_bytes;
#ifdef __AVX512BF16__
  if (block_in_pairs(x.element)) {
    blocks_of<Pairs, true>(packed, w, codes, first, last, result);
  } else {
    blocks_of<Floats, false>(packed, w, codes, first, last, result);
  }
#else
  blocks_of<Floats, false>(packed, w, codes, first, last, result);
#endif
  for (int64_t t = 0; t < tokens; ++t) {
    write(result + t * kPackedRows, w, tile * kPackedRows, first * kTokens + t, y);
  }
}

}  // namespace

extern const PackedKernels packed_kernels;
const PackedKernels packed_kernels = {kTokens, kChunk, &prepare, &row, &pack, &blocks};

}  // namespace mlcalib::cpu::MLCALIB_ISA
