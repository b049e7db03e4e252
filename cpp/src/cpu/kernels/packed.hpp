// SPDX-License-Identifier: Apache-2.0
// The parts of a packed weight, and the elements that its products read and write.
#pragma once

#include "element.hpp"

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

namespace mlcalib::cpu::MLCALIB_ISA {
namespace {

// A strip of a tile: the rows that a loop holds in registers.
constexpr int64_t kVectors = 2;
constexpr int64_t kRows = kVectors * kLanes;
static_assert(kPackedRows % kRows == 0);

inline int64_t group_columns(const PackedWeight& w, int64_t group) {
  return min_of(w.width, w.columns - group * w.width);
}

inline int64_t steps_of(int64_t columns) { return divide_up(columns, kPackedColumns); }

// ---- Codes ----

inline Mask load_words(const int32_t* p) {
  Mask words;
  __builtin_memcpy(&words, p, sizeof words);
  return words;
}

/// The column that the 4-bit code at position p of a word is of.
constexpr int64_t nibble_column(int64_t p) { return 2 * (p % 4) + p / 4; }

#ifdef __AVX512F__
inline Vec nibble(Mask word, int64_t p) {
  const Vec table = {0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1};
  const Mask index = word >> static_cast<int32_t>(4 * p);  // of which four bits are read
  // All lanes, said so: GCC 12 warns of what the unmasked intrinsic leaves undefined.
  return reinterpret_cast<Vec>(_mm512_maskz_permutexvar_ps(0xffff, reinterpret_cast<__m512i>(index),
                                                           reinterpret_cast<__m512>(table)));
}
#else
inline Vec nibble(Mask word, int64_t p) {
  return __builtin_convertvector((word << static_cast<int32_t>(28 - 4 * p)) >> 28, Vec);
}
#endif

inline Vec octet(Mask word, int64_t p) {
  return __builtin_convertvector((word << static_cast<int32_t>(24 - 8 * p)) >> 24, Vec);
}

/// Values that bfloat16 holds exactly, as pairs.
inline Vec pair_of(Vec low, Vec high) {
  return reinterpret_cast<Vec>((reinterpret_cast<Bits>(low) >> 16) |
                               (reinterpret_cast<Bits>(high) & 0xffff0000U));
}

#ifdef __AVX512BF16__
/// Codes p and p + 4 of each word, neighbours in x, as bfloat16.
inline Vec nibble_pair(Mask word, int64_t p) {
  using Halves = uint16_t __attribute__((vector_size(sizeof(Vec))));
  // bfloat16 of 0 … 7, −8 … −1, twice: the index has five bits.
  const Halves table = {0,      0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0,
                        0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80,
                        0,      0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0,
                        0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80};
  const Mask index = word >> static_cast<int32_t>(4 * p);
  return reinterpret_cast<Vec>(
      _mm512_permutexvar_epi16(reinterpret_cast<__m512i>(index), reinterpret_cast<__m512i>(table)));
}
#endif

// ---- Scales and zero points ----

inline Vec load_scale(const PackedWeight& w, const uint8_t* tile, int64_t group, int64_t row) {
  const uint8_t* scales = tile + w.scale_offset;
  const int64_t at = group * kPackedRows + row;
  switch (w.scale) {
    case Element::kBFloat16:
      return load_elements(reinterpret_cast<const uint16_t*>(scales) + at);
    case Element::kHalf:
      return load_elements(reinterpret_cast<const _Float16*>(scales) + at);
    default:
      return load(reinterpret_cast<const float*>(scales) + at);
  }
}

/// Of codes less `middle`.
inline Vec load_zero(const PackedWeight& w, const uint8_t* tile, int64_t group, int64_t row) {
  if (w.symmetric) return Vec{};
  Bytes zero;
  __builtin_memcpy(&zero, tile + w.zero_offset + group * kPackedRows + row, sizeof zero);
  return __builtin_convertvector(zero, Vec) - w.middle;
}

// ---- Elements ----

template <class To, class T>
inline To convert(T x) {
  if constexpr (sizeof(To) == sizeof(float)) {
    return to_float(x);
  } else {
    return x;  // bfloat16 stays bfloat16
  }
}

template <class T>
inline T from_float(float x);

template <>
inline float from_float<float>(float x) {
  return x;
}

template <>
inline _Float16 from_float<_Float16>(float x) {
  return static_cast<_Float16>(x);
}

/// To the nearest, ties to even; NaN stays NaN.
template <>
inline uint16_t from_float<uint16_t>(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return x == x ? static_cast<uint16_t>(rounded) : uint16_t{0x7fc0};
}

template <class T>
inline void write_as(const float* result, int64_t count, const T* bias, T* to) {
  if (bias == nullptr) {
    for (int64_t r = 0; r < count; ++r) to[r] = from_float<T>(result[r]);
  } else {
    for (int64_t r = 0; r < count; ++r) to[r] = from_float<T>(result[r] + to_float(bias[r]));
  }
}

/// The results of a tile, of rows from `row` on, as those of a token.
inline void write(const float* result, const PackedWeight& w, int64_t row, int64_t token,
                  const PackedOutput& y) {
  const int64_t count = min_of(kPackedRows, w.rows - row);
  with_elements(y.element, y.bias, [&]<class T>(const T* bias) {
    T* to = static_cast<T*>(y.data) + token * w.rows + row;
    write_as(result, count, bias == nullptr ? nullptr : bias + row, to);
  });
}

/// The results of a tile, [token][kPackedRows], as those of tokens [first, last) that x has.
inline void write_tokens(const float* result, const Activations& x, const PackedWeight& w,
                         int64_t tile, int64_t first, int64_t last, const PackedOutput& y) {
  for (int64_t t = first; t < min_of(last, x.tokens); ++t, result += kPackedRows) {
    write(result, w, tile * kPackedRows, t, y);
  }
}

}  // namespace
}  // namespace mlcalib::cpu::MLCALIB_ISA
