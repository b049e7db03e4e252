// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

namespace mlcalib {

/// What the changes D of earlier rows add to the weights that later rows are rounded from, when
/// tr(O D G Dᵀ) is to be small, O the Gram of the outputs' gradients (arXiv 2505.22988): with O +
/// λI = R Rᵀ, R upper triangular, and rows in blocks of kRowBlock, those of block b are solved for
///   W_b + Σ_{a<b} F_ba D_a,  F_ba = R_bb⁻ᵀ R_abᵀ.
/// float32 [rows, rows], zero on and above the blocks of the diagonal. Rows stand in `order`, int64
/// [rows]; λ is `damp` of the mean of O's diagonal. Throws as mean_diagonal and raise_damp do.
at::Tensor row_feed(const at::Tensor& output, const at::Tensor& order, double damp);

}  // namespace mlcalib
