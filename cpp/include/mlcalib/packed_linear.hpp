// SPDX-License-Identifier: Apache-2.0
// Functions keep no state and may be called from several threads, also with the same arguments.
#pragma once

#include <ATen/core/Tensor.h>

#include <mlcalib/export.hpp>
#include <mlcalib/grid.hpp>
#include <mlcalib/linear.hpp>
#include <optional>

namespace MLCALIB_API mlcalib {

/// Codes and grid in a layout for `packed_linear`: uint8 [tiles, bytes], the device's own and not
/// meant for files. Codes of up to 4 bits are held in 4, others in 8; scales in spec.scale_dtype.
/// Throws ValueError for codes or zero points that do not fit the spec, and for scales that
/// scale_dtype does not hold exactly.
at::Tensor pack_linear(const QuantizedLinear& quantized);

/// The inverse of pack_linear.
QuantizedLinear unpack_linear(const at::Tensor& packed, int64_t rows, int64_t columns,
                              const GridSpec& spec);

/// x Wᵀ + bias, of x's dtype [..., rows], where W = scale · (code − zero) is never made as a whole.
/// x [..., columns] is float32, bfloat16 or float16, bias [rows] of the same type. Products and
/// sums are float32's; only the result is rounded to x's dtype. Throws ValueError or TypeError
/// where shapes, types or devices do not fit.
at::Tensor packed_linear(const at::Tensor& x, const at::Tensor& packed, int64_t rows,
                         int64_t columns, const GridSpec& spec,
                         const std::optional<at::Tensor>& bias = std::nullopt);

}  // namespace mlcalib
