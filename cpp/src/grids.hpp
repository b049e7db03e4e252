// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <mlcalib/grid.hpp>

#include "grid_shape.hpp"

namespace mlcalib {

/// Levels and candidates of the range search.
GridShape grid_shape(const GridSpec& spec);

/// Columns of a group that is not the last.
int64_t group_width(const GridSpec& spec, int64_t columns);

/// Columns whose grids are fitted together: a group, or a super-block.
int64_t fit_width(const GridSpec& spec, int64_t columns);

/// The grid that a checkpoint can hold: scale rounded to spec.scale_dtype, zero as uint8; or both
/// as super-blocks hold them. scale and zero are [rows, groups, …], of whole super-blocks, or where
/// scales are nested [rows, groups] of a whole weight; its spec has the global_scale. Throws
/// ValueError where a scale overflows that type.
Grid round_grid(const at::Tensor& scale, const at::Tensor& zero, const GridSpec& spec);

/// The rounded grid of a spec that is per_tensor, with the same scale in all rows of weight float32
/// [rows, cols]. importance and gram are those of fit_grid_stub.
Grid fit_tensor_grid(const at::Tensor& weight, const at::Tensor& importance, const at::Tensor& gram,
                     const GridSpec& spec);

}  // namespace mlcalib
