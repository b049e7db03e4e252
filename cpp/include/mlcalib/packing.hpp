// SPDX-License-Identifier: Apache-2.0
// Functions keep no state and may be called from several threads, also with the same arguments.
#pragma once

#include <ATen/core/Tensor.h>

#include <mlcalib/export.hpp>

namespace MLCALIB_API mlcalib {

/// codes uint8 [rows, cols] as one dense bit stream per row, lowest bits first: int32
/// [rows, ceil(cols · bits / 32)]. Throws ValueError for a code that does not fit `bits` (2 … 8).
at::Tensor pack(const at::Tensor& codes, int64_t bits);

/// The inverse of pack: uint8 [rows, columns].
at::Tensor unpack(const at::Tensor& packed, int64_t bits, int64_t columns);

}  // namespace mlcalib
