// SPDX-License-Identifier: Apache-2.0
#include "cholesky.hpp"

#include <ATen/TensorOperators.h>
#include <ATen/ops/linalg_cholesky_ex.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <tuple>

namespace mlcalib {
namespace {

constexpr double kDampStep = 10;
constexpr double kDampLimit = 1;

}  // namespace

double mean_diagonal(const at::Tensor& gram) {
  const at::Tensor diagonal = gram.diagonal();
  TORCH_CHECK_LINALG(diagonal.min().item<float>() >= 0,
                     "the Gram is not positive definite: its diagonal goes down to ",
                     diagonal.min().item<float>(), "; expected a sum of x xᵀ.");
  const double mean = diagonal.mean(at::kDouble).item<double>();
  TORCH_CHECK_VALUE(mean > 0,
                    "the Gram is zero: no calibration token reached this linear. Give it ",
                    "tokens, or round it with rtn.");
  return mean;
}

double raise_damp(double damp, const std::function<bool(double)>& factorize) {
  const double first = damp;
  while (!factorize(damp)) {
    TORCH_CHECK_LINALG(damp * kDampStep <= std::max(kDampLimit, first),
                       "the Gram is not positive definite, even with damping ", damp,
                       " (asked: ", first,
                       ") of the mean of its diagonal; expected a sum of x xᵀ. ",
                       "Check the statistics, or raise damp.");
    damp *= kDampStep;
  }
  return damp;
}

Cholesky damped_cholesky(const at::Tensor& gram, double mean, double damp) {
  const at::Tensor original = gram.diagonal().clone();
  at::Tensor lower;
  damp = raise_damp(damp, [&](double tried) {
    gram.diagonal().copy_(original + tried * mean);
    at::Tensor info;
    std::tie(lower, info) = at::linalg_cholesky_ex(gram);
    return info.item<int64_t>() == 0;
  });
  return {lower, damp};
}

}  // namespace mlcalib
