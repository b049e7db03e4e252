// SPDX-License-Identifier: Apache-2.0
// The bins of a histogram of magnitudes, the same on every device. Plain C++: kernels include it.
#pragma once

#include <cstdint>

namespace mlcalib {

/// Four bins an octave: the exponent of a float32 and the first two bits of its mantissa.
inline constexpr int kHistogramShift = 21;
/// Bin 0 takes all below 1.25 · 2⁻¹⁶, zeros too; the last all from 1.75 · 2¹⁵ on.
inline constexpr int32_t kHistogramFirst = (127 - 16) << 2;
inline constexpr int32_t kHistogramBins = 128;

}  // namespace mlcalib
