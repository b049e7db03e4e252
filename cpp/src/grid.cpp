// SPDX-License-Identifier: Apache-2.0
#include <ATen/TensorOperators.h>
#include <ATen/ops/isfinite.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <mlcalib/grid.hpp>

#include "check.hpp"
#include "grids.hpp"
#include "host_device.hpp"
#include "stubs.hpp"
#include "units.hpp"

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

std::string_view to_string(Numbers numbers) {
  switch (numbers) {
    case Numbers::kInteger:
      return "integer";
    case Numbers::kNf4:
      return "nf4";
    case Numbers::kE2m1:
      return "e2m1";
    case Numbers::kE4m3:
      return "e4m3";
  }
  TORCH_INTERNAL_ASSERT(false);
}

Numbers parse_numbers(std::string_view name) {
  for (const Numbers numbers : {Numbers::kInteger, Numbers::kNf4, Numbers::kE2m1, Numbers::kE4m3}) {
    if (to_string(numbers) == name) return numbers;
  }
  TORCH_CHECK_VALUE(false, "numbers is '", name, "', expected 'integer', 'nf4', 'e2m1' or 'e4m3'.");
}

bool needs_gram(Range range) { return range == Range::kGram || range == Range::kGramBlock; }

void GridSpec::check() const {
  TORCH_CHECK_VALUE(2 <= bits && bits <= 8, "bits is ", bits, ", expected 2 to 8.");
  TORCH_CHECK_VALUE(group_size == kWholeRow || group_size > 0, "group_size is ", group_size,
                    ", expected a positive number of input channels, or -1 for the whole row.");
  const bool floats = numbers == Numbers::kE2m1 || numbers == Numbers::kE4m3;
  if (numbers != Numbers::kInteger) {
    const int64_t expected = numbers == Numbers::kE4m3 ? 8 : 4;
    TORCH_CHECK_VALUE(bits == expected, "bits is ", bits, ", expected ", expected,
                      " with numbers='", to_string(numbers), "'.");
    TORCH_CHECK_VALUE(symmetric, "numbers='", to_string(numbers),
                      "' has no zero points; pass symmetric=True.");
  }
  const bool wide =
      scale_dtype == at::kFloat || scale_dtype == at::kBFloat16 || scale_dtype == at::kHalf;
  const bool narrow = scale_dtype == at::kFloat8_e8m0fnu || scale_dtype == at::kFloat8_e4m3fn;
  TORCH_CHECK_VALUE(wide || (floats && narrow), "scale_dtype is ", scale_dtype,
                    ", expected float32, bfloat16 or float16, or with numbers 'e2m1' or 'e4m3' ",
                    "float8_e8m0fnu or float8_e4m3fn.");
  TORCH_CHECK_VALUE(
      global_scale == 0 ||
          (scale_dtype == at::kFloat8_e4m3fn && std::isnormal(global_scale) && global_scale > 0 &&
           static_cast<double>(static_cast<float>(global_scale)) == global_scale),
      "global_scale is ", global_scale, ", expected a positive float32 with scale_dtype ",
      "float8_e4m3fn, or 0.");
}

int64_t GridSpec::groups(int64_t channels) const {
  return group_size == kWholeRow ? 1 : divide_up(channels, group_size);
}

GridShape grid_shape(const GridSpec& spec) {
  Scales scales = Scales::kAny;
  if (spec.scale_dtype == at::kFloat8_e8m0fnu) scales = Scales::kPowers;
  if (spec.global_scale != 0) scales = Scales::kE4m3;
  const bool integer = spec.numbers == Numbers::kInteger;
  return {.largest = integer ? static_cast<float>(spec.max_code()) : largest_number(spec.numbers),
          .symmetric = spec.symmetric,
          .candidates = spec.range == Range::kMinMax ? 1 : kCandidates,
          .numbers = spec.numbers,
          .scales = scales,
          .global_scale = static_cast<float>(spec.global_scale)};
}

int64_t group_width(const GridSpec& spec, int64_t columns) {
  return spec.group_size == kWholeRow ? columns : std::min(spec.group_size, columns);
}

GridSpec with_global_scale(GridSpec spec, at::TensorList weights) {
  if (spec.scale_dtype != at::kFloat8_e4m3fn || spec.global_scale != 0) return spec;
  // The largest group's scale becomes 448, as in compressed-tensors; weights of zeros take any.
  float extreme = 0;
  for (const at::Tensor& weight : weights) {
    extreme = std::max(extreme, weight.abs().max().item<float>());
  }
  const float found = largest_number(Numbers::kE4m3) * largest_number(spec.numbers) / extreme;
  spec.global_scale = std::isnormal(found) ? found : 1;
  return spec;
}

Grid round_grid(const at::Tensor& scale, const at::Tensor& zero, const GridSpec& spec) {
  // A scale too small for its type becomes the smallest that it has: zero would divide to NaN.
  if (spec.scale_dtype == at::kFloat8_e4m3fn) {
    const at::Tensor numbers = scale.mul(spec.global_scale).clamp_(E4m3::kStep, 448);
    const at::Tensor held = numbers.to(spec.scale_dtype).to(at::kFloat).div_(spec.global_scale);
    return {held.contiguous(), zero.to(at::kByte).contiguous(), spec};
  }
  const double smallest = spec.scale_dtype == at::kHalf ? 5.9604645e-8 : 1.17549435e-38;
  const at::Tensor rounded = scale.clamp_min(smallest).to(spec.scale_dtype).to(at::kFloat);
  TORCH_CHECK_VALUE(at::isfinite(rounded).all().item<bool>(), "a scale of up to ",
                    scale.max().item<float>(), " does not fit ", spec.scale_dtype,
                    "; use scale_dtype=torch.float32 or torch.bfloat16.");
  return {rounded.contiguous(), zero.to(at::kByte).contiguous(), spec};
}

Grid fit_grid(const at::Tensor& weight, const GridSpec& asked,
              const std::optional<at::Tensor>& gram) {
  asked.check();
  const at::Tensor checked = check_weight(weight);
  const GridSpec spec = with_global_scale(asked, {checked});
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
