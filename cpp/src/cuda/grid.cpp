// SPDX-License-Identifier: Apache-2.0
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include "../grids.hpp"
#include "../stubs.hpp"
#include "device.hpp"

namespace mlcalib {
namespace cuda {

std::tuple<at::Tensor, at::Tensor> fit(const at::Tensor& weight, const ErrorWeights& weights,
                                       const GridSpec& spec) {
  const int64_t rows = weight.size(0), columns = weight.size(1);
  const int64_t width = group_width(spec, columns);
  const bool by_block = weights.gram.defined();
  at::Tensor scale = at::empty({rows, spec.groups(columns)}, weight.options());
  at::Tensor zero = at::empty_like(scale);
  const at::Tensor scratch =
      at::empty({by_block ? fit_scratch(rows, columns, width) : 0}, weight.options());
  on_device_of(weight, [&](cudaStream_t stream) {
    fit_grid({.weight = data(weight),
              .importance = data(weights.importance),
              .gram = data(weights.gram),
              .gram_stride = by_block ? weights.gram.stride(0) : 0,
              .scratch = cuda::pointer<float>(scratch),
              .rows = rows,
              .columns = columns,
              .stride = columns,
              .width = width,
              .shape = grid_shape(spec),
              .scale = cuda::pointer<float>(scale),
              .zero = cuda::pointer<float>(zero)},
             stream);
  });
  return {scale, zero};
}

}  // namespace cuda

namespace {

std::tuple<at::Tensor, at::Tensor> fit_grid_cuda(const at::Tensor& weight,
                                                 const at::Tensor& importance,
                                                 const at::Tensor& gram, const GridSpec& spec) {
  const auto rows = [](const at::Tensor& tensor) {
    return tensor.defined() ? tensor.contiguous() : tensor;
  };
  return cuda::fit(weight, {rows(importance), rows(gram)}, spec);
}

/// Calls run(levels, stream) with the grid of a matrix [rows, columns].
template <class Run>
void with_levels(const at::Tensor& matrix, const Grid& grid, const Run& run) {
  const at::Tensor scale = grid.scale.contiguous(), zero = grid.zero.to(at::kFloat).contiguous();
  const int64_t columns = matrix.size(1);
  const cuda::Levels levels{cuda::pointer<const float>(scale),
                            cuda::pointer<const float>(zero),
                            matrix.size(0),
                            columns,
                            group_width(grid.spec, columns),
                            grid_shape(grid.spec)};
  cuda::on_device_of(matrix, [&](cudaStream_t stream) { run(levels, stream); });
}

at::Tensor quantize_cuda(const at::Tensor& weight, const Grid& grid) {
  at::Tensor codes = at::empty_like(weight, weight.options().dtype(at::kByte));
  with_levels(weight, grid, [&](const cuda::Levels& levels, cudaStream_t stream) {
    cuda::quantize(cuda::data(weight), levels, cuda::pointer<uint8_t>(codes), stream);
  });
  return codes;
}

at::Tensor dequantize_cuda(const at::Tensor& codes, const Grid& grid) {
  at::Tensor weight = at::empty_like(codes, codes.options().dtype(at::kFloat));
  with_levels(codes, grid, [&](const cuda::Levels& levels, cudaStream_t stream) {
    cuda::dequantize(cuda::pointer<const uint8_t>(codes), levels, cuda::pointer<float>(weight),
                     stream);
  });
  return weight;
}

const bool grid_installed = fit_grid_stub.install(cuda::kDevice, &fit_grid_cuda) &&
                            quantize_stub.install(cuda::kDevice, &quantize_cuda) &&
                            dequantize_stub.install(cuda::kDevice, &dequantize_cuda);

}  // namespace
}  // namespace mlcalib
