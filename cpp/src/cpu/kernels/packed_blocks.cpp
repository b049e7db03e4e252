// SPDX-License-Identifier: Apache-2.0
// The product of many tokens and packed weights: a panel of weights, in the first-level cache,
// times blocks of tokens. Lanes are rows of the weight.
#include "packed_panel.hpp"
#include "product.hpp"

namespace mlcalib::cpu::MLCALIB_ISA {
namespace {

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

int64_t block_floats(const PackedWeight& w, Element element) {
  return kTokens * step_elements(element) * w.steps;
}

void pack(const Activations& x, const PackedWeight& w, int64_t first, int64_t last, float* packed) {
  for (int64_t block = first; block < last; ++block) {
    float* to = packed + block * block_floats(w, x.element);
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
  write_tokens(result, x, w, tile, first * kTokens, last * kTokens, y);
}

}  // namespace

extern const PackedBlockKernels packed_block_kernels;
const PackedBlockKernels packed_block_kernels = {kTokens, kChunk, &block_floats, &pack, &blocks};

}  // namespace mlcalib::cpu::MLCALIB_ISA
