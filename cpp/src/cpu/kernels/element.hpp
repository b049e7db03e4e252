// SPDX-License-Identifier: Apache-2.0
// Activations of any type as floats.
#pragma once

#include "vec.hpp"

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

/// kLanes channels, those from `left` on as zeros.
template <class T>
inline Vec load_channels(const T* from, int64_t left) {
  float values[kLanes];
  if (left >= kLanes) {
    for (int64_t i = 0; i < kLanes; ++i) values[i] = to_float(from[i]);
  } else {
    for (int64_t i = 0; i < kLanes; ++i) values[i] = i < left ? to_float(from[i]) : 0.0F;
  }
  return load(values);
}

}  // namespace
}  // namespace mlcalib::cpu::MLCALIB_ISA
