// SPDX-License-Identifier: Apache-2.0
#include <mlcalib/rtn.hpp>

#include "check.hpp"

namespace mlcalib {

QuantizedLinear rtn(const at::Tensor& weight, const GridSpec& spec,
                    const std::optional<at::Tensor>& gram) {
  QuantizedLinear result;
  result.grid = fit_grid(weight, spec, gram);
  if (spec.has_nested_scales() && spec.range == Range::kMinMax) {
    // As bitsandbytes does, which chooses codes before it quantizes scales.
    GridSpec before = spec;
    before.scale_dtype = at::kFloat;
    before.global_scale = 0;
    result.codes = quantize(weight, fit_grid(weight, before));
  } else {
    result.codes = quantize(weight, result.grid);
  }
  if (gram) {
    result.loss = losses(weight, result, {*gram}).front();
    result.dead_channels = count_dead_channels(*gram);
  }
  return result;
}

}  // namespace mlcalib
