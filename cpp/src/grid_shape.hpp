// SPDX-License-Identifier: Apache-2.0
// What kernels of every device know of a grid. Plain C++: kernels include it.
#pragma once

namespace mlcalib {

/// Levels are 0 … max_code; weight ≈ scale · (code − zero).
struct GridShape {
  float max_code;
  bool symmetric;
  int candidates;  ///< shrunk ranges tried per group; 1 is the group's own extremes
};

/// Shrunk ranges tried by the searches: 1.00, 0.97, … 0.61.
inline constexpr int kCandidates = 14;

}  // namespace mlcalib
