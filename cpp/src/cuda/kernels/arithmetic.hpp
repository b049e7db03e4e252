// SPDX-License-Identifier: Apache-2.0
// What the CUDA kernels compute, element by element: the same functions run on the device and in
// the CPU tests, which hold them against src/cpu/kernels. Codes and ranges are decided as
// decisions.hpp says, for one row at a time.
#pragma once

#include <cstdint>
#include <cstring>

#include "../../decisions.hpp"
#include "../../histogram.hpp"

#ifdef __CUDACC__
#include <cuda_fp16.h>
#endif

namespace mlcalib::cuda {

using Level = mlcalib::Level<float>;
using Extremes = mlcalib::Extremes<float>;
using Decision = mlcalib::Decision<float>;
using Step = mlcalib::Step<float>;

template <class NumberSet>
MLCALIB_HD uint8_t nearest_code(float weight, Level level, NumberSet numbers) {
  return static_cast<uint8_t>(code_of(nearest_unit(weight, level, numbers), level, numbers));
}

// ---- The range of a group ----

MLCALIB_HD Extremes joined(Extremes a, Extremes b) {
  return {min_of(a.low, b.low), max_of(a.high, b.high)};
}

/// Σ_c importance_c (w_c − ŵ_c)²; importance may be null. weight(c) gives w_c.
template <class Weight, class NumberSet>
MLCALIB_HD float diagonal_loss(const Weight& weight, const float* importance, int columns,
                               Level level, NumberSet numbers) {
  float loss = 0;
  for (int c = 0; c < columns; ++c) {
    loss += diagonal_term(nearest_error(weight(c), level, numbers), importance, c);
  }
  return loss;
}

/// d G dᵀ with d = w − ŵ: Σ_i d_i (G_ii d_i + 2 Σ_{j<i} G_ij d_j). `error` is scratch:
/// [columns], `error_stride` floats apart.
template <class Weight, class NumberSet>
MLCALIB_HD float block_loss(const Weight& weight, const float* gram, int64_t gram_stride,
                            float* error, int error_stride, int columns, Level level,
                            NumberSet numbers) {
  float loss = 0;
  for (int i = 0; i < columns; ++i) {
    const float* row = gram + i * gram_stride;
    float sum = 0;
    for (int j = 0; j < i; ++j) sum += error[j * error_stride] * row[j];
    const float d = nearest_error(weight(i), level, numbers);
    loss += block_term(d, row[i], sum);
    error[i * error_stride] = d;
  }
  return loss;
}

// ---- Activations ----

/// Each element type by the bits that it is stored in.
struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

MLCALIB_HD float to_float(float x) { return x; }

MLCALIB_HD float to_float(BFloat16 x) {
  const uint32_t bits = uint32_t{x.bits} << 16;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

MLCALIB_HD float to_float(Half x) {
#ifdef __CUDACC__
  return __half2float(__ushort_as_half(x.bits));
#else
  _Float16 value;
  memcpy(&value, &x.bits, sizeof value);
  return static_cast<float>(value);
#endif
}

/// Sums of one channel over few tokens: float32.
struct Moments {
  float sum = 0;
  float absolute = 0;
  float square = 0;
};

MLCALIB_HD Moments added(Moments moments, float x) {
  return {moments.sum + x, moments.absolute + max_of(x, -x), moments.square + x * x};
}

/// Neither NaN nor Inf.
MLCALIB_HD bool is_finite(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return (bits & 0x7f800000U) != 0x7f800000U;
}

/// The bin of a magnitude.
MLCALIB_HD int32_t histogram_bin(float x) {
  int32_t bits;
  memcpy(&bits, &x, sizeof bits);
  const int32_t bin = ((bits & 0x7fffffff) >> kHistogramShift) - kHistogramFirst;
  return min_of(max_of(bin, 0), kHistogramBins - 1);
}

// ---- Packing: one dense bit stream per row, lowest bits first ----

/// Word `word` of a row of codes.
MLCALIB_HD uint32_t packed_word(const uint8_t* codes, int64_t columns, int64_t bits, int64_t word) {
  const int64_t start = word * 32;
  uint32_t packed = 0;
  for (int64_t c = start / bits; c < columns && c * bits < start + 32; ++c) {
    const int64_t shift = c * bits - start;  // negative for a code that began in the word before
    packed |= shift < 0 ? uint32_t{codes[c]} >> -shift : uint32_t{codes[c]} << shift;
  }
  return packed;
}

/// Code `column` of a packed row.
MLCALIB_HD uint8_t unpacked_code(const uint32_t* words, int64_t bits, int64_t column) {
  const int64_t start = column * bits, word = start / 32, shift = start % 32;
  uint32_t code = words[word] >> shift;
  if (shift + bits > 32) code |= words[word + 1] << (32 - shift);
  return static_cast<uint8_t>(code & ((uint32_t{1} << bits) - 1));
}

}  // namespace mlcalib::cuda
