// SPDX-License-Identifier: Apache-2.0
#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/cholesky_solve.h>
#include <ATen/ops/mm.h>
#include <c10/util/Exception.h>

#include <cmath>
#include <mlcalib/correction.hpp>

#include "check.hpp"
#include "cholesky.hpp"

namespace mlcalib {

void CorrectionOptions::check() const {
  TORCH_CHECK_VALUE(strength >= 0 && strength <= 1, "strength is ", strength,
                    ", expected a share from 0 to 1.");
  TORCH_CHECK_VALUE(std::isfinite(ridge) && ridge > 0, "ridge is ", ridge,
                    ", expected a positive fraction of the mean of the Gram's diagonal.");
}

std::vector<at::Tensor> corrected(at::TensorList weights, const at::Tensor& gram,
                                  const at::Tensor& deviation, const CorrectionOptions& options) {
  options.check();
  const std::vector<at::Tensor> checked = check_weights(weights);
  const at::Tensor weight = checked.size() == 1 ? checked.front() : at::cat(checked);
  check_gram(gram, weight.size(1));
  check_gram(deviation, weight.size(1), "deviation");
  check_device(gram, "gram", weight, "a weight");
  check_device(deviation, "deviation", weight, "a weight");

  const at::Tensor damped = gram.clone(at::MemoryFormat::Contiguous);
  const Cholesky factor = damped_cholesky(damped, mean_diagonal(gram), options.ridge);
  const at::Tensor change = at::cholesky_solve(at::mm(weight, deviation).t(), factor.lower).t();
  const at::Tensor target = weight + change * options.strength;

  std::vector<at::Tensor> result;
  int64_t first = 0;
  for (const at::Tensor& each : checked) {
    result.push_back(target.narrow(0, first, each.size(0)).contiguous());
    first += each.size(0);
  }
  return result;
}

}  // namespace mlcalib
