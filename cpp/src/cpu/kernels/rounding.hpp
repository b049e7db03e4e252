// SPDX-License-Identifier: Apache-2.0
// Levels and ranges; included where codes are decided, by units compiled without contraction.
#pragma once

#include "vec.hpp"

namespace mlcalib::cpu::MLCALIB_ISA {
namespace {

static_assert(kRowTile % kLanes == 0);
constexpr int64_t kVectors = kRowTile / kLanes;

// Adding 1.5 · 2^23 leaves no fraction bits: rounds to nearest even, for |x| < 2^22, on every
// instruction set alike.
template <class T>
inline T round_nearest(T x) {
  const float kMagic = 12582912.0F;
  return (x + kMagic) - kMagic;
}

// code − zero of the nearest level. Clamped before it is rounded: the bounds are integers.
template <class T>
inline T nearest_level(T weight, T scale, T zero, T max_code) {
  return round_nearest(min_of(max_of(weight / scale, -zero), max_code - zero));
}

}  // namespace
}  // namespace mlcalib::cpu::MLCALIB_ISA
