// SPDX-License-Identifier: Apache-2.0
#include <ATen/ops/isfinite.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <mlcalib/grid.hpp>

#include "check.hpp"
#include "grids.hpp"
#include "host_device.hpp"
#include "stubs.hpp"

namespace mlcalib {

std::string_view to_string(Range range) {
  switch (range) {
    case Range::kMinMax:
      return "minmax";
    case Range::kMse:
      return "mse";
    case Range::kGram:
      return "gram";
    case Range::kGramBlock:
      return "gram_block";
  }
  TORCH_INTERNAL_ASSERT(false);
}

Range parse_range(std::string_view name) {
  for (const Range range : {Range::kMinMax, Range::kMse, Range::kGram, Range::kGramBlock}) {
    if (to_string(range) == name) return range;
  }
  TORCH_CHECK_VALUE(false, "range is '", name,
                    "', expected 'minmax', 'mse', 'gram' or 'gram_block'.");
}

bool needs_gram(Range range) { return range == Range::kGram || range == Range::kGramBlock; }

void GridSpec::check() const {
  TORCH_CHECK_VALUE(2 <= bits && bits <= 8, "bits is ", bits, ", expected 2 to 8.");
  TORCH_CHECK_VALUE(group_size == kWholeRow || group_size > 0, "group_size is ", group_size,
                    ", expected a positive number of input channels, or -1 for the whole row.");
  TORCH_CHECK_VALUE(
      scale_dtype == at::kFloat || scale_dtype == at::kBFloat16 || scale_dtype == at::kHalf,
      "scale_dtype is ", scale_dtype, ", expected float32, bfloat16 or float16.");
}

int64_t GridSpec::groups(int64_t channels) const {
  return group_size == kWholeRow ? 1 : divide_up(channels, group_size);
}

GridShape grid_shape(const GridSpec& spec) {
  return {.max_code = static_cast<float>(spec.max_code()),
          .symmetric = spec.symmetric,
          .candidates = spec.range == Range::kMinMax ? 1 : kCandidates};
}

int64_t group_width(const GridSpec& spec, int64_t columns) {
  return spec.group_size == kWholeRow ? columns : std::min(spec.group_size, columns);
}

Grid round_grid(const at::Tensor& scale, const at::Tensor& zero, const GridSpec& spec) {
  // A scale too small for its type becomes the smallest that it has: zero would divide to NaN.
  const double smallest = spec.scale_dtype == at::kHalf ? 5.9604645e-8 : 1.17549435e-38;
  const at::Tensor rounded = scale.clamp_min(smallest).to(spec.scale_dtype).to(at::kFloat);
  TORCH_CHECK_VALUE(at::isfinite(rounded).all().item<bool>(), "a scale of up to ",
                    scale.max().item<float>(), " does not fit ", spec.scale_dtype,
                    "; use scale_dtype=torch.float32 or torch.bfloat16.");
  return {rounded.contiguous(), zero.to(at::kByte).contiguous(), spec};
}

Grid fit_grid(const at::Tensor& weight, const GridSpec& spec,
              const std::optional<at::Tensor>& gram) {
  spec.check();
  const at::Tensor checked = check_weight(weight);
  if (needs_gram(spec.range)) {
    TORCH_CHECK_VALUE(gram.has_value(), "range='", to_string(spec.range),
                      "' needs the Gram of the weight's input; pass gram=, or use range='mse'.");
    check_gram(*gram, checked.size(1));
    check_device(*gram, "gram", checked, "weight");
  }
  const auto [scale, zero] =
      fit_grid_stub(checked.device().type(), checked,
                    spec.range == Range::kGram ? gram->diagonal().contiguous() : at::Tensor(),
                    spec.range == Range::kGramBlock ? gram->contiguous() : at::Tensor(), spec);
  return round_grid(scale, zero, spec);
}

at::Tensor quantize(const at::Tensor& weight, const Grid& grid) {
  const at::Tensor checked = check_weight(weight);
  check_grid(grid, checked, "weight");
  return quantize_stub(checked.device().type(), checked, grid);
}

at::Tensor dequantize(const at::Tensor& codes, const Grid& grid) {
  TORCH_CHECK_TYPE(codes.scalar_type() == at::kByte, "codes are ", codes.scalar_type(),
                   ", expected uint8.");
  check_grid(grid, codes, "codes");
  return dequantize_stub(codes.device().type(), codes.contiguous(), grid);
}

}  // namespace mlcalib
