// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <mlcalib/grid.hpp>

namespace mlcalib {

/// The scales that lose least given codes and zero points: for each row the least-squares solution
/// of (w − Σ_g s_g u_g) H (…)ᵀ, u_g = numbers of the codes in group g and zero elsewhere; minima
/// stay. float32 [rows, groups]; a scale that would be zero or change its sign stays as it is. Of a
/// spec that is per_tensor all rows together have one. hessian float32 [cols, cols].
at::Tensor refit_scale(const at::Tensor& weight, const at::Tensor& codes, const Grid& grid,
                       const at::Tensor& hessian);

/// The diagonal of D H Dᵀ of an error D; float64 [rows].
at::Tensor row_energy(const at::Tensor& error, const at::Tensor& hessian);

/// The diagonal of D Dᵀ; float64 [rows].
at::Tensor row_square(const at::Tensor& error);

}  // namespace mlcalib
