// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <mlcalib/grid.hpp>

namespace mlcalib {

/// Double quantization (arXiv 2305.14314, section 3): what is left of scales [rows, groups] when
/// `offset` is taken away lies, row by row, in blocks of 256, each the largest magnitude of the
/// block times numbers of nested_numbers(). Returns the scales that this stands for, float32, on
/// the same device; the same ones whatever the device is.
at::Tensor held_nested(const at::Tensor& scale, float offset);

/// Their mean, which the offset is where none is given; as bitsandbytes sums it.
float nested_offset(const at::Tensor& scale);

}  // namespace mlcalib
