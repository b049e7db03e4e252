// SPDX-License-Identifier: Apache-2.0
#include "descent.hpp"

#include <ATen/TensorOperators.h>

#include "stubs.hpp"

namespace mlcalib {

at::Tensor descend(const at::Tensor& weight, const at::Tensor& hessian, const at::Tensor& output,
                   const at::Tensor& codes, const Grid& grid, int64_t sweeps) {
  if (sweeps == 0) return codes;
  return descend_stub(weight.device().type(),
                      {.hessian = hessian,
                       .output = output,
                       .error = dequantize_stub(weight.device().type(), codes, grid) - weight,
                       .codes = codes,
                       .grid = grid,
                       .sweeps = sweeps});
}

}  // namespace mlcalib
