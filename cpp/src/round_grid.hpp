// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <mlcalib/grid.hpp>

namespace mlcalib {

/// The grid that a checkpoint can hold: scale rounded to spec.scale_dtype, zero as uint8. Throws
/// ValueError where a scale overflows that type.
Grid round_grid(const at::Tensor& scale, const at::Tensor& zero, const GridSpec& spec);

}  // namespace mlcalib
