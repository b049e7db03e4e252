// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <mlcalib/grid.hpp>

namespace mlcalib {

/// Whether the scales of a group may change by themselves.
bool has_free_scales(const GridSpec& spec);

/// What scale multiplies in each weight, float32 [rows, width], of codes and zero points of one
/// group.
at::Tensor units_of(const at::Tensor& codes, const at::Tensor& zero, const GridSpec& spec);

/// One group of the rows of a tile in a coordinate descent on tr(O D H Dᵀ), D = Ŵ − W.
struct ScaleProblem {
  at::Tensor scale;     ///< float32 [rows]
  at::Tensor zero;      ///< of the grid, [rows]
  at::Tensor units;     ///< C, float32 [rows, width]
  at::Tensor felt;      ///< C H of the group, float32 [rows, width]
  at::Tensor gradient;  ///< O D H, float32 [rows, width]
  at::Tensor output;    ///< O of the rows, float32 [rows, rows]
};

struct ScaleStep {
  at::Tensor scale;   ///< float32 [rows], as the spec holds it
  at::Tensor change;  ///< of D, float32 [rows, width]
};

/// The scales that lose least together where codes, zero points and all else stay; those that are
/// there, where rounding to the spec would make it more.
ScaleStep step_scales(const ScaleProblem& problem, const GridSpec& spec);

}  // namespace mlcalib
