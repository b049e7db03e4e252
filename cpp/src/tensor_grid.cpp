// SPDX-License-Identifier: Apache-2.0
#include <ATen/TensorOperators.h>
#include <ATen/ops/full.h>

#include "decisions.hpp"
#include "full_precision.hpp"
#include "grids.hpp"
#include "refit.hpp"
#include "stubs.hpp"

namespace mlcalib {
namespace {

// What the range search makes least, over all rows; float64.
double loss_of(const at::Tensor& weight, const at::Tensor& dequantized,
               const at::Tensor& importance, const at::Tensor& gram) {
  if (gram.defined()) return row_energy(dequantized - weight, gram).sum().item<double>();
  const at::Tensor squares =
      (weight - dequantized).square_().sum(0, /*keepdim=*/false, at::kDouble);
  return (importance.defined() ? squares * importance : squares).sum().item<double>();
}

}  // namespace

// Every device has rounding and its inverse; a search by these needs no kernel of its own.
Grid fit_tensor_grid(const at::Tensor& weight, const at::Tensor& importance, const at::Tensor& gram,
                     const GridSpec& spec) {
  const FullPrecision full_precision;
  const GridShape shape = grid_shape(spec);
  const float extreme = weight.abs().max().item<float>();
  Grid best{.scale = {}, .zero = {}, .spec = spec};
  double least = 0;
  for (int candidate = 0; candidate < shape.candidates; ++candidate) {
    const Level<float> level = candidate_level<float>({-extreme, extreme}, shape, candidate);
    const auto filled = [&](float value) {
      return at::full({weight.size(0), 1}, value, weight.options());
    };
    const Grid grid{filled(level.scale), filled(level.zero), spec};
    double loss = 0;
    if (shape.candidates > 1) {
      const at::DeviceType device = weight.device().type();
      const at::Tensor codes = quantize_stub(device, weight, grid);
      loss = loss_of(weight, dequantize_stub(device, codes, grid), importance, gram);
    }
    if (candidate == 0 || is_better(loss, least)) {
      best = grid;
      least = loss;
    }
  }
  return round_grid(best.scale, best.zero, spec);
}

}  // namespace mlcalib
