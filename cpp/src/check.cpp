// SPDX-License-Identifier: Apache-2.0
#include "check.hpp"

#include <ATen/ops/count_nonzero.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/logical_not.h>
#include <ATen/ops/nonzero.h>
#include <ATen/ops/sum.h>
#include <c10/util/Exception.h>

#include <cmath>
#include <string>

namespace mlcalib {
namespace {

std::string first_index(const at::Tensor& where) {
  std::string text;
  for (int64_t d = 0; d < where.size(1); ++d) {
    text += (d == 0 ? "[" : ", ") + std::to_string(where[0][d].item<int64_t>());
  }
  return text + "]";
}

}  // namespace

void check_floating(const at::Tensor& tensor, const char* name) {
  const at::ScalarType type = tensor.scalar_type();
  TORCH_CHECK_TYPE(type == at::kFloat || type == at::kBFloat16 || type == at::kHalf, name, " is ",
                   type, ", expected float32, bfloat16 or float16; convert it with .float().");
}

void check_finite(const at::Tensor& tensor, const char* what) {
  if (tensor.is_meta()) return;  // no values; the kernel that meta lacks will be named
  // NaN and Inf survive a sum; a sum that overflows without them is told apart by the exact check.
  if (std::isfinite(at::sum(tensor, at::kFloat).item<float>())) return;
  const at::Tensor bad = at::logical_not(at::isfinite(tensor));
  const at::Tensor where = at::nonzero(bad);
  TORCH_CHECK_VALUE(where.size(0) == 0, what, " holds ", where.size(0), " NaN or Inf of ",
                    tensor.numel(), " values, the first at index ", first_index(where));
}

at::Tensor check_weight(const at::Tensor& weight) {
  TORCH_CHECK_VALUE(weight.dim() == 2, "weight has shape ", weight.sizes(),
                    ", expected a matrix [out, in].");
  check_floating(weight, "weight");
  TORCH_CHECK_VALUE(weight.numel() > 0, "weight has shape ", weight.sizes(),
                    ", expected at least one row and one column.");
  check_finite(weight, "weight");
  return weight.detach().to(at::kFloat).contiguous();
}

std::vector<at::Tensor> check_weights(at::TensorList weights) {
  TORCH_CHECK_VALUE(!weights.empty(), "weights is empty, expected at least one matrix.");
  std::vector<at::Tensor> checked;
  for (const at::Tensor& weight : weights) {
    checked.push_back(check_weight(weight));
    TORCH_CHECK_VALUE(checked.back().size(1) == checked.front().size(1), "weights have ",
                      checked.front().size(1), " and ", checked.back().size(1),
                      " input channels; linears solved together read the same input.");
    check_device(checked.back(), "a weight", checked.front(), "the first");
  }
  return checked;
}

void check_gram(const at::Tensor& gram, int64_t channels, const char* name) {
  TORCH_CHECK_VALUE(gram.dim() == 2 && gram.size(0) == channels && gram.size(1) == channels, name,
                    " has shape ", gram.sizes(), ", expected [", channels, ", ", channels,
                    "], the input channels of the weight.");
  TORCH_CHECK_TYPE(gram.scalar_type() == at::kFloat, name, " is ", gram.scalar_type(),
                   ", expected float32; convert it with .float().");
  check_finite(gram, name);
}

void check_device(const at::Tensor& tensor, const char* name, const at::Tensor& other,
                  const char* of) {
  if (other.is_meta()) return;  // the kernel that meta lacks will be named
  TORCH_CHECK_VALUE(tensor.device() == other.device(), name, " is on ", tensor.device(), " but ",
                    of, " is on ", other.device(), "; move one of them with .to().");
}

void check_grid(const Grid& grid, const at::Tensor& matrix, const char* name) {
  grid.spec.check();
  const at::IntArrayRef shape = grid.scale.sizes();
  TORCH_CHECK_VALUE(matrix.dim() == 2 && shape.size() == 2 && shape[0] == matrix.size(0) &&
                        shape[1] == grid.spec.groups(matrix.size(1)) && grid.zero.sizes() == shape,
                    name, " has shape ", matrix.sizes(), " but the grid's scale has shape ", shape,
                    " and its zero ", grid.zero.sizes(),
                    "; expected [rows, groups] with groups of ", grid.spec.group_size, " columns.");
  const bool minima = grid.spec.has_minima();
  TORCH_CHECK_TYPE(grid.scale.scalar_type() == at::kFloat &&
                       grid.zero.scalar_type() == (minima ? at::kFloat : at::kByte),
                   "the grid's scale is ", grid.scale.scalar_type(), " and its zero ",
                   grid.zero.scalar_type(), ", expected float32 and ",
                   minima ? "float32 (minima)." : "uint8.");
  check_device(grid.scale, "the grid's scale", matrix, name);
  check_device(grid.zero, "the grid's zero", matrix, name);
}

int64_t count_dead_channels(const at::Tensor& gram) {
  return gram.size(0) - at::count_nonzero(gram.diagonal()).item<int64_t>();
}

}  // namespace mlcalib
