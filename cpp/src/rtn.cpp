// SPDX-License-Identifier: Apache-2.0
#include <mlcalib/rtn.hpp>

#include "check.hpp"

namespace mlcalib {

QuantizedLinear rtn(const at::Tensor& weight, const GridSpec& spec,
                    const std::optional<at::Tensor>& gram) {
  QuantizedLinear result;
  result.grid = fit_grid(weight, spec, gram);
  result.codes = quantize(weight, result.grid);
  if (gram) {
    result.loss = losses(weight, result, {*gram}).front();
    result.dead_channels = count_dead_channels(*gram);
  }
  return result;
}

}  // namespace mlcalib
