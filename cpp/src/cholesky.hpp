// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

namespace mlcalib {

struct Cholesky {
  at::Tensor lower;  ///< L, lower triangular, G + damp · mean · I = L Lᵀ
  double damp = 0;
};

/// Mean of the diagonal. Throws LinAlgError where it holds negative numbers and ValueError where it
/// is zero.
double mean_diagonal(const at::Tensor& gram);

/// Adds `damp` of `mean` to the diagonal of `gram` (which is changed) and factorises it; where it
/// is not positive definite the damping rises tenfold at a time, past 1 LinAlgError is thrown.
Cholesky damped_cholesky(const at::Tensor& gram, double mean, double damp);

}  // namespace mlcalib
