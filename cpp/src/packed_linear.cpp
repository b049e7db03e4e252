// SPDX-License-Identifier: Apache-2.0
#include <c10/util/Exception.h>

#include <mlcalib/packed_linear.hpp>
#include <vector>

#include "check.hpp"
#include "stubs.hpp"

namespace mlcalib {
namespace {

void check_codes(const at::Tensor& codes, const Grid& grid) {
  const GridSpec& spec = grid.spec;
  const int64_t largest = codes.max().item<int64_t>();
  TORCH_CHECK_VALUE(largest <= spec.max_code(), "codes go up to ", largest, ", but ", spec.bits,
                    " bits hold at most ", spec.max_code(), ".");
  const int64_t middle = int64_t{1} << (spec.bits - 1);
  TORCH_CHECK_VALUE(!spec.symmetric || grid.zero.eq(middle).all().item<bool>(),
                    "the grid is symmetric but its zero points are not all ", middle,
                    "; give a GridSpec with symmetric=False.");
  TORCH_CHECK_VALUE(
      grid.scale.to(spec.scale_dtype).to(at::kFloat).eq(grid.scale).all().item<bool>(),
      "scales are not finite and exact in ", spec.scale_dtype,
      "; give a GridSpec with the scale_dtype that they were rounded to.");
}

void check_numbers(const GridSpec& spec) {
  TORCH_CHECK_NOT_IMPLEMENTED(spec.numbers == Numbers::kInteger, "there is no product of packed ",
                              to_string(spec.numbers), " weights; dequantize them.");
  TORCH_CHECK_NOT_IMPLEMENTED(spec.super_block == 0, "there is no product of packed weights of ",
                              "super-blocks; dequantize them.");
}

void check_size(int64_t rows, int64_t columns) {
  TORCH_CHECK_VALUE(rows > 0 && columns > 0, "rows is ", rows, " and columns ", columns,
                    ", expected at least one of each.");
}

}  // namespace

at::Tensor pack_linear(const QuantizedLinear& quantized) {
  const at::Tensor codes = quantized.codes.contiguous();
  const Grid& grid = quantized.grid;
  check_grid(grid, codes, "codes");
  check_numbers(grid.spec);
  TORCH_CHECK_TYPE(codes.scalar_type() == at::kByte, "codes are ", codes.scalar_type(),
                   ", expected uint8.");
  TORCH_CHECK_VALUE(codes.numel() > 0, "codes have shape ", codes.sizes(),
                    ", expected at least one row and one column.");
  if (!codes.is_meta()) check_codes(codes, grid);
  return pack_linear_stub(codes.device().type(), codes,
                          {grid.scale.contiguous(), grid.zero.contiguous(), grid.spec});
}

QuantizedLinear unpack_linear(const at::Tensor& packed, int64_t rows, int64_t columns,
                              const GridSpec& spec) {
  spec.check();
  check_numbers(spec);
  check_size(rows, columns);
  auto [codes, grid] =
      unpack_linear_stub(packed.device().type(), packed.contiguous(), rows, columns, spec);
  return {.codes = std::move(codes), .grid = std::move(grid), .loss = {}};
}

at::Tensor packed_linear(const at::Tensor& x, const at::Tensor& packed, int64_t rows,
                         int64_t columns, const GridSpec& spec,
                         const std::optional<at::Tensor>& bias) {
  spec.check();
  check_floating(x, "x");
  check_size(rows, columns);
  // The packed bytes do not tell: groups are padded.
  TORCH_CHECK_VALUE(x.dim() > 0 && x.size(-1) == columns, "x has shape ", x.sizes(),
                    ", expected [..., ", columns, "], the columns of the packed weight.");
  check_device(packed, "the packed weight", x, "x");
  if (bias.has_value()) {
    TORCH_CHECK_VALUE(bias->dim() == 1 && bias->size(0) == rows, "bias has shape ", bias->sizes(),
                      ", expected [", rows, "].");
    TORCH_CHECK_TYPE(bias->scalar_type() == x.scalar_type(), "bias is ", bias->scalar_type(),
                     " but x is ", x.scalar_type(), "; convert one of them with .to().");
    check_device(*bias, "bias", x, "x");
  }
  std::vector<int64_t> shape = x.sizes().vec();
  shape.back() = rows;
  const at::Tensor matrix = x.reshape({-1, columns});
  return packed_linear_stub(x.device().type(), matrix, packed, rows, spec,
                            bias.has_value() ? bias->contiguous() : at::Tensor())
      .view(shape);
}

}  // namespace mlcalib
