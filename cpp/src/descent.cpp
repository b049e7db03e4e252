// SPDX-License-Identifier: Apache-2.0
#include "descent.hpp"

#include <ATen/TensorOperators.h>

#include "stubs.hpp"

namespace mlcalib {

Descended descend(const at::Tensor& weight, const at::Tensor& hessian, const at::Tensor& codes,
                  const Grid& grid, int64_t sweeps, const OutputGram& output) {
  const at::Device device = weight.device();
  return descend_stub(device.type(),
                      {.hessian = hessian,
                       .output = output.gram,
                       .output_added = static_cast<float>(output.added),
                       .error = dequantize_stub(device.type(), codes, grid).sub_(weight),
                       .codes = codes,
                       .grid = grid,
                       .sweeps = sweeps});
}

}  // namespace mlcalib
