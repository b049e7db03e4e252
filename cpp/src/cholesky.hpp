// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>

namespace mlcalib {

struct Cholesky {
  at::Tensor lower;  ///< L, lower triangular, G + damp · mean · I = L Lᵀ
  double damp = 0;
};

/// Mean of the diagonal. Throws LinAlgError where it holds negative numbers and ValueError where it
/// is zero.
double mean_diagonal(const at::Tensor& gram);

/// Calls factorize(damp) with `damp`, and ten times more at a time, until it returns true; returns
/// what it took. Past 1 LinAlgError is thrown.
double raise_damp(double damp, const std::function<bool(double)>& factorize);

/// Adds `damp` of `mean` to the diagonal of `gram` (which is changed) and factorises it, with as
/// much damping as that takes.
Cholesky damped_cholesky(const at::Tensor& gram, double mean, double damp);

}  // namespace mlcalib
