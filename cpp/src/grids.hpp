// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/List.h>

#include <mlcalib/grid.hpp>

#include "grid_shape.hpp"

namespace mlcalib {

/// Levels and candidates of the range search.
GridShape grid_shape(const GridSpec& spec);

/// Columns of a group that is not the last.
int64_t group_width(const GridSpec& spec, int64_t columns);

/// The spec with the global_scale that weights ask for together; itself where it has one or needs
/// none.
GridSpec with_global_scale(GridSpec spec, at::TensorList weights);

/// The grid that a checkpoint can hold: scale rounded to spec.scale_dtype, zero as uint8. Throws
/// ValueError where a scale overflows that type.
Grid round_grid(const at::Tensor& scale, const at::Tensor& zero, const GridSpec& spec);

}  // namespace mlcalib
