// SPDX-License-Identifier: Apache-2.0
// What kernels of every device know of a grid. Plain C++: kernels include it.
#pragma once

#include "../include/mlcalib/numbers.hpp"

namespace mlcalib {

/// What scales may be, where that decides between ranges; rounding to wider types comes afterwards.
enum class Scales {
  kAny,
  kPowers,  ///< powers of two
  kE4m3,    ///< Float8_e4m3fn numbers divided by global_scale
};

/// Codes of integers are 0 … largest; of other numbers it is the largest one. With minima, the zero
/// of a level is what the weight of code 0 lies below zero. With signed scales, which are
/// symmetric, the sign of a scale decides which end of a group has the level more.
struct GridShape {
  float largest;
  bool symmetric;
  int candidates;  ///< shrunk ranges tried per group; 1 is the group's own extremes
  Numbers numbers = Numbers::kInteger;
  Scales scales = Scales::kAny;
  float global_scale = 0;
  bool minima = false;
  bool signed_scales = false;
};

/// Shrunk ranges tried by the searches: 1.00, 0.97, … 0.61.
inline constexpr int kCandidates = 14;

}  // namespace mlcalib
