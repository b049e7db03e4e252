// SPDX-License-Identifier: Apache-2.0
// What the CUDA kernels compute, element by element: the same functions run on the device and in
// the CPU tests, which hold them against src/cpu/kernels. Codes and ranges are decided here, so
// units that include this are compiled without contraction and with IEEE division (-fmad=false
// -prec-div=true, -ffp-contract=off).
#pragma once

#include <cstdint>
#include <cstring>

#include "../../histogram.hpp"

#ifdef __CUDACC__
#include <cuda_fp16.h>
#define MLCALIB_HD __host__ __device__ inline
#else
#define MLCALIB_HD inline
#endif

namespace mlcalib::cuda {

inline constexpr float kSmallestScale = 1.17549435e-38F;  // FLT_MIN
inline constexpr float kShrinkStep = 0.03F;

/// Levels are 0 … max_code; weight ≈ scale · (code − zero).
struct GridShape {
  float max_code;
  bool symmetric;
  int candidates;  ///< shrunk ranges tried per group; 1 is the group's own extremes
};

struct Level {
  float scale;
  float zero;
};

template <class T>
MLCALIB_HD T min_of(T a, T b) {
  return a < b ? a : b;
}

template <class T>
MLCALIB_HD T max_of(T a, T b) {
  return a > b ? a : b;
}

// ---- Levels ----

/// Half to even, for |x| < 2^22.
MLCALIB_HD float round_nearest(float x) {
  const float magic = 12582912.0F;
  return (x + magic) - magic;
}

/// code − zero of the nearest level.
MLCALIB_HD float nearest_level(float weight, Level level, float max_code) {
  return round_nearest(min_of(max_of(weight / level.scale, -level.zero), max_code - level.zero));
}

MLCALIB_HD uint8_t nearest_code(float weight, Level level, float max_code) {
  return static_cast<uint8_t>(nearest_level(weight, level, max_code) + level.zero);
}

MLCALIB_HD float value_of(uint8_t code, Level level) {
  return level.scale * (static_cast<float>(code) - level.zero);
}

// ---- The range of a group ----

/// Extremes of weights; they always hold zero.
struct Extremes {
  float low = 0;
  float high = 0;
};

MLCALIB_HD Extremes widened(Extremes extremes, float weight) {
  return {min_of(extremes.low, weight), max_of(extremes.high, weight)};
}

MLCALIB_HD Extremes joined(Extremes a, Extremes b) {
  return {min_of(a.low, b.low), max_of(a.high, b.high)};
}

MLCALIB_HD Extremes balanced(Extremes extremes) {
  const float high = max_of(extremes.high, -extremes.low);
  return {-high, high};
}

/// The candidate-th shrunk range.
MLCALIB_HD Level candidate_level(Extremes extremes, const GridShape& shape, int candidate) {
  const float shrink = 1.0F - kShrinkStep * static_cast<float>(candidate);
  const float scale =
      max_of((extremes.high - extremes.low) * shrink / shape.max_code, kSmallestScale);
  if (shape.symmetric) return {scale, (shape.max_code + 1.0F) / 2};
  return {scale,
          round_nearest(min_of(max_of(-(extremes.low * shrink) / scale, 0.0F), shape.max_code))};
}

/// Σ_c importance_c (w_c − ŵ_c)²; importance may be null. weight(c) gives w_c.
template <class Weight>
MLCALIB_HD float diagonal_loss(const Weight& weight, const float* importance, int columns,
                               Level level, float max_code) {
  float loss = 0;
  for (int c = 0; c < columns; ++c) {
    const float w = weight(c);
    const float d = w - level.scale * nearest_level(w, level, max_code);
    loss += importance != nullptr ? d * d * importance[c] : d * d;
  }
  return loss;
}

/// d G dᵀ with d = w − ŵ: Σ_i d_i (G_ii d_i + 2 Σ_{j<i} G_ij d_j). `error` is scratch:
/// [columns], `error_stride` floats apart.
template <class Weight>
MLCALIB_HD float block_loss(const Weight& weight, const float* gram, int64_t gram_stride,
                            float* error, int error_stride, int columns, Level level,
                            float max_code) {
  float loss = 0;
  for (int i = 0; i < columns; ++i) {
    const float* row = gram + i * gram_stride;
    float sum = 0;
    for (int j = 0; j < i; ++j) sum += error[j * error_stride] * row[j];
    const float w = weight(i);
    const float d = w - level.scale * nearest_level(w, level, max_code);
    loss += d * (d * row[i] + sum * 2.0F);
    error[i * error_stride] = d;
  }
  return loss;
}

/// The first of the least losses. One that is not a number is never better, nor bettered.
MLCALIB_HD bool is_better(float loss, float best) { return loss < best; }

// ---- GPTQ ----

/// One column of one row decided.
struct Decision {
  float error;     ///< w − ŵ
  float residual;  ///< R_kk (target − ŵ)
  uint8_t code;
};

MLCALIB_HD Decision decide(float weight, float target, Level level, float diagonal,
                           float max_code) {
  const float nearest = nearest_level(target, level, max_code);
  const float quantized = level.scale * nearest;
  return {weight - quantized, (target - quantized) * diagonal,
          static_cast<uint8_t>(nearest + level.zero)};
}

/// A later column's target, once an earlier one was decided.
MLCALIB_HD float fed_back(float target, float error, float factor) {
  return target + error * factor;
}

// ---- AWQ ----

/// (w·f − Q(w·f)) / f for scaled = w·f.
MLCALIB_HD float scaled_error(float scaled, Level level, float inverse, float max_code) {
  return (scaled - level.scale * nearest_level(scaled, level, max_code)) * inverse;
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
