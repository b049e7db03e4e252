// SPDX-License-Identifier: Apache-2.0
// Plain C++ without std and ATen code: kernels include it.
#pragma once

namespace mlcalib {

/// What the scale of a group multiplies.
enum class Numbers {
  kInteger,  ///< code − zero
  kNf4,      ///< the 16 values of NormalFloat (arXiv 2305.14314), −1 to 1
  kE2m1,     ///< floats of 4 bits: ±{0, 0.5, 1, 1.5, 2, 3, 4, 6} (OCP MX 1.0)
  kE4m3,     ///< floats of 8 bits, up to ±448, without infinities (OCP OFP8, "fn")
};

}  // namespace mlcalib
