// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <mlcalib/grid.hpp>
#include <tuple>

namespace mlcalib {

/// The scales that lose least given codes and zero points: for each row the least-squares solution
/// of (w − Σ_g s_g u_g) H (…)ᵀ, u_g = numbers of the codes in group g and zero elsewhere; minima
/// stay. float32 [rows, groups]; a scale that would be zero or change its sign stays as it is. Of a
/// spec that is per_tensor all rows together have one. hessian float32 [cols, cols].
at::Tensor refit_scale(const at::Tensor& weight, const at::Tensor& codes, const Grid& grid,
                       const at::Tensor& hessian);

/// The diagonals of D H Dᵀ and D Dᵀ of an error D; float64 [rows] each.
std::tuple<at::Tensor, at::Tensor> row_losses(const at::Tensor& error, const at::Tensor& hessian);

}  // namespace mlcalib
