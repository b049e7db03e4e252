// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/Context.h>

namespace mlcalib {

/// Every front whose arithmetic multiplies float32 matrices holds one, and what it calls, kernels
/// of every device too, need not: cuBLAS and cuSOLVER then never take TF32, whatever torch allows.
using FullPrecision = at::NoTF32Guard;

}  // namespace mlcalib
