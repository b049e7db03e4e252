// SPDX-License-Identifier: Apache-2.0
#include <ATen/TensorOperators.h>
#include <ATen/ops/cholesky_solve.h>
#include <ATen/ops/mm.h>
#include <c10/util/Exception.h>

#include <cmath>
#include <mlcalib/correction.hpp>

#include "check.hpp"
#include "cholesky.hpp"
#include "full_precision.hpp"

namespace mlcalib {

void CorrectionOptions::check() const {
  TORCH_CHECK_VALUE(strength >= 0 && strength <= 1, "strength is ", strength,
                    ", expected a share from 0 to 1.");
  TORCH_CHECK_VALUE(std::isfinite(ridge) && ridge > 0, "ridge is ", ridge,
                    ", expected a positive fraction of the mean of the Gram's diagonal.");
}

std::vector<at::Tensor> corrected(at::TensorList weights, const at::Tensor& gram,
                                  const at::Tensor& deviation, const CorrectionOptions& options) {
  const FullPrecision full_precision;
  options.check();
  const std::vector<at::Tensor> checked = check_weights(weights);
  const at::Tensor& one = checked.front();
  check_gram(gram, one.size(1));
  check_gram(deviation, one.size(1), "deviation");
  check_device(gram, "gram", one, "a weight");
  check_device(deviation, "deviation", one, "a weight");

  const at::Tensor damped = gram.clone(at::MemoryFormat::Contiguous);
  const Cholesky factor = damped_cholesky(damped, mean_diagonal(gram), options.ridge);
  std::vector<at::Tensor> result;
  for (const at::Tensor& weight : checked) {
    const at::Tensor change = at::cholesky_solve(at::mm(weight, deviation).t(), factor.lower).t();
    result.push_back(weight + change * options.strength);
  }
  return result;
}

}  // namespace mlcalib
