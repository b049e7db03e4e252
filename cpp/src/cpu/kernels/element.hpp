// SPDX-License-Identifier: Apache-2.0
// Activations of any type as floats.
#pragma once

#include "vec.hpp"

#ifdef __F16C__
#include <immintrin.h>
#endif

namespace mlcalib::cpu::MLCALIB_ISA {
namespace {

inline float to_float(float x) { return x; }

inline float to_float(uint16_t bfloat16) {
  const uint32_t bits = uint32_t{bfloat16} << 16;
  float x;
  __builtin_memcpy(&x, &bits, sizeof x);
  return x;
}

inline float to_float(_Float16 x) { return static_cast<float>(x); }

template <class T>
inline Vec load_elements(const T* from) {
  float values[kLanes];
  for (int64_t i = 0; i < kLanes; ++i) values[i] = to_float(from[i]);
  return load(values);
}

// GCC 12 converts one half at a time.
#if defined(__AVX512F__)
inline Vec load_elements(const _Float16* from) {
  // The form without a mask warns of its own uninitialized variable.
  return _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}
#elif defined(__F16C__)
inline Vec load_elements(const _Float16* from) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}
#endif

/// kLanes channels, those from `left` on as zeros.
template <class T>
inline Vec load_channels(const T* from, int64_t left) {
  if (left >= kLanes) return load_elements(from);
  float values[kLanes];
  for (int64_t i = 0; i < kLanes; ++i) values[i] = i < left ? to_float(from[i]) : 0.0F;
  return load(values);
}

/// Calls run with `data` as a pointer to its elements; bfloat16 is held as uint16_t.
template <class Run>
inline void with_elements(Element element, const void* data, const Run& run) {
  switch (element) {
    case Element::kFloat:
      return run(static_cast<const float*>(data));
    case Element::kBFloat16:
      return run(static_cast<const uint16_t*>(data));
    case Element::kHalf:
      return run(static_cast<const _Float16*>(data));
  }
}

}  // namespace
}  // namespace mlcalib::cpu::MLCALIB_ISA
