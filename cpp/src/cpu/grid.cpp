// SPDX-License-Identifier: Apache-2.0
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <algorithm>
#include <vector>

#include "../grids.hpp"
#include "../interrupt.hpp"
#include "../stubs.hpp"
#include "fit_panel.hpp"
#include "kernels/kernels.hpp"
#include "panel.hpp"

namespace mlcalib {
namespace cpu {

ErrorWeights ErrorWeights::narrow(int64_t column, int64_t count) const {
  ErrorWeights part;
  if (importance.defined()) part.importance = importance.narrow(0, column, count);
  if (gram.defined()) part.gram = gram.narrow(0, column, count).narrow(1, column, count);
  return part;
}

namespace {

// Fits the groups [first, last) to a panel whose columns begin with those of `first`, `width` of
// them for each. Groups of a tile are independent: threads get equal shares of all of them.
void fit(const at::Tensor& panel, const ErrorWeights& weights, const GridSpec& spec, int64_t width,
         int64_t first, int64_t last, const at::Tensor& scale, const at::Tensor& zero) {
  const GridShape shape = grid_shape(spec);
  const bool by_block = weights.gram.defined();
  const int64_t stride = by_block ? weights.gram.stride(0) : 0, groups = last - first;
  const auto from = [](const at::Tensor& tensor, int64_t place) {
    return tensor.defined() ? tensor.const_data_ptr<float>() + place : nullptr;
  };
  at::parallel_for(0, panel.size(0) * groups, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(by_block ? std::min(width, panel.size(1)) * kRowTile : 0);
    for (int64_t next = begin; next < end; ++next) {
      const int64_t tile = next / groups, group = next % groups, column = group * width;
      const int64_t at = (tile * scale.size(1) + first + group) * kRowTile;
      kernels().fit_group({.weight = from(panel, tile * panel.stride(0) + column * kRowTile),
                           .importance = from(weights.importance, column),
                           .gram = from(weights.gram, column * (stride + 1)),
                           .gram_stride = stride,
                           .scratch = scratch.data(),
                           .columns = std::min(width, panel.size(1) - column)},
                          shape, scale.data_ptr<float>() + at, zero.data_ptr<float>() + at);
    }
  });
}

}  // namespace

void fit_panel(const at::Tensor& panel, const ErrorWeights& weights, const GridSpec& spec,
               int64_t group, const at::Tensor& scale, const at::Tensor& zero) {
  fit(panel, weights, spec, panel.size(1), group, group + 1, scale, zero);
}

void fit_groups(const at::Tensor& panel, const ErrorWeights& weights, const GridSpec& spec,
                const at::Tensor& scale, const at::Tensor& zero) {
  // So many at once that a thread has several tiles of groups, and that an interrupt is heard.
  const int64_t columns = panel.size(1), groups = scale.size(1);
  const int64_t width = group_width(spec, columns);
  const int64_t at_once = divide_up(4 * at::get_num_threads(), panel.size(0));
  for (int64_t group = 0; group < groups; group += at_once) {
    check_interrupt();
    const int64_t last = std::min(group + at_once, groups), column = group * width;
    const int64_t count = std::min(last * width, columns) - column;
    fit(panel.narrow(1, column, count), weights.narrow(column, count), spec, width, group, last,
        scale, zero);
  }
}

}  // namespace cpu

namespace {

std::tuple<at::Tensor, at::Tensor> fit_grid_cpu(const at::Tensor& weight,
                                                const at::Tensor& importance,
                                                const at::Tensor& gram, const GridSpec& spec) {
  const int64_t rows = weight.size(0), groups = spec.groups(weight.size(1));
  const at::Tensor panel = cpu::to_panel<float>(weight);
  const at::Tensor scale = at::empty({panel.size(0), groups, cpu::kRowTile}, weight.options());
  const at::Tensor zero = at::empty_like(scale);
  cpu::fit_groups(panel, {importance, gram}, spec, scale, zero);
  return {cpu::from_panel<float, float>(scale, rows), cpu::from_panel<float, float>(zero, rows)};
}

// Calls run(offset, length, scale, zero) for every row's every group.
template <class Run>
void for_each_run(int64_t rows, int64_t columns, const Grid& grid, const Run& run) {
  const at::Tensor scale = grid.scale.contiguous(), zero = grid.zero.to(at::kFloat).contiguous();
  const float* scales = scale.const_data_ptr<float>();
  const float* zeros = zero.const_data_ptr<float>();
  const int64_t groups = scale.size(1);
  const int64_t width = group_width(grid.spec, columns);
  at::parallel_for(0, rows, 16, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      for (int64_t g = 0; g < groups; ++g) {
        run(r * columns + g * width, std::min(width, columns - g * width), scales[r * groups + g],
            zeros[r * groups + g]);
      }
    }
  });
}

at::Tensor quantize_cpu(const at::Tensor& weight, const Grid& grid) {
  at::Tensor codes = at::empty_like(weight, weight.options().dtype(at::kByte));
  const float* from = weight.const_data_ptr<float>();
  uint8_t* to = codes.data_ptr<uint8_t>();
  const GridShape shape = grid_shape(grid.spec);
  for_each_run(weight.size(0), weight.size(1), grid,
               [&](int64_t at, int64_t n, float scale, float zero) {
                 cpu::kernels().quantize_run(from + at, n, scale, zero, shape, to + at);
               });
  return codes;
}

at::Tensor dequantize_cpu(const at::Tensor& codes, const Grid& grid) {
  at::Tensor weight = at::empty_like(codes, codes.options().dtype(at::kFloat));
  const uint8_t* from = codes.const_data_ptr<uint8_t>();
  float* to = weight.data_ptr<float>();
  const GridShape shape = grid_shape(grid.spec);
  for_each_run(codes.size(0), codes.size(1), grid,
               [&](int64_t at, int64_t n, float scale, float zero) {
                 cpu::kernels().dequantize_run(from + at, n, scale, zero, shape, to + at);
               });
  return weight;
}

const bool grid_installed = fit_grid_stub.install(at::kCPU, &fit_grid_cpu) &&
                            quantize_stub.install(at::kCPU, &quantize_cpu) &&
                            dequantize_stub.install(at::kCPU, &dequantize_cpu);

}  // namespace
}  // namespace mlcalib
