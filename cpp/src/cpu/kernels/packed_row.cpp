// SPDX-License-Identifier: Apache-2.0
// The product of one token and packed weights, Σ scale · (Σ code · x − zero · Σ x): lanes are rows
// of the weight, and codes turn into floats in registers, where they are used.
#include "packed.hpp"
#include "product.hpp"

namespace mlcalib::cpu::MLCALIB_ISA {
namespace {

// Two vectors of rows by four sums each: eight chains of additions.
constexpr int64_t kChains = 4;

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
        sum[p % kChains][v] += nibble(word, p) * splat<Vec>(x[nibble_column(p)]);
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
          sum[p % kChains][v] += octet(word, p) * splat<Vec>(x[4 * h + p]);
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

}  // namespace

extern const PackedRowKernels packed_row_kernels;
const PackedRowKernels packed_row_kernels = {&prepare, &row};

}  // namespace mlcalib::cpu::MLCALIB_ISA
