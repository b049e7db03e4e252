// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <mlcalib/grid.hpp>

#include "kernels/kernels.hpp"

namespace mlcalib::cpu {

/// What weighs the errors of columns; both undefined where errors count alike.
struct ErrorWeights {
  at::Tensor importance;  ///< float32 [columns], or undefined
  at::Tensor gram;        ///< float32 [columns, columns], rows contiguous, or undefined

  /// Those of `count` columns.
  ErrorWeights narrow(int64_t column, int64_t count) const;
};

/// Fits one group to its columns: panel float32 [tiles, columns, kRowTile], a view of whole
/// columns. Writes scale and zero, float32 [tiles, groups, kRowTile].
void fit_panel(const at::Tensor& panel, const ErrorWeights& weights, const GridSpec& spec,
               int64_t group, const at::Tensor& scale, const at::Tensor& zero);

/// The same for every group of a panel of all columns, in their own order.
void fit_groups(const at::Tensor& panel, const ErrorWeights& weights, const GridSpec& spec,
                const at::Tensor& scale, const at::Tensor& zero);

}  // namespace mlcalib::cpu
