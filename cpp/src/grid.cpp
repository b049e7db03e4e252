// SPDX-License-Identifier: Apache-2.0
#include <ATen/TensorOperators.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/where.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <mlcalib/grid.hpp>

#include "check.hpp"
#include "grids.hpp"
#include "host_device.hpp"
#include "nested_scales.hpp"
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
  const bool nested = numbers == Numbers::kNf4 && has_nested_scales();
  TORCH_CHECK_VALUE(wide || (floats && narrow) || nested, "scale_dtype is ", scale_dtype,
                    ", expected float32, bfloat16 or float16, or with numbers 'e2m1' or 'e4m3' ",
                    "float8_e8m0fnu or float8_e4m3fn, or with 'nf4' uint8.");
  TORCH_CHECK_VALUE(
      global_scale == 0 || ((scale_dtype == at::kFloat8_e4m3fn || nested) &&
                            std::isnormal(global_scale) && global_scale > 0 &&
                            static_cast<double>(static_cast<float>(global_scale)) == global_scale),
      "global_scale is ", global_scale, ", expected a positive float32 with scale_dtype ",
      "float8_e4m3fn or uint8, or 0.");
  if (per_tensor) {
    TORCH_CHECK_VALUE(group_size == kWholeRow, "group_size is ", group_size,
                      ", expected -1 with per_tensor=True.");
    TORCH_CHECK_VALUE(symmetric, "per_tensor=True has no zero points; pass symmetric=True.");
    TORCH_CHECK_VALUE(wide, "scale_dtype is ", scale_dtype,
                      ", expected float32, bfloat16 or float16 with per_tensor=True.");
  }
  if (super_block == 0) {
    TORCH_CHECK_VALUE(scale_bits == 0, "scale_bits is ", scale_bits,
                      ", expected 0 without a super_block.");
    return;
  }
  TORCH_CHECK_VALUE(numbers == Numbers::kInteger, "numbers is '", to_string(numbers),
                    "', expected 'integer' with a super_block.");
  TORCH_CHECK_VALUE(group_size > 0 && super_block > 0 && super_block % group_size == 0,
                    "super_block is ", super_block, ", expected a multiple of group_size (",
                    group_size, "), or 0.");
  TORCH_CHECK_VALUE(2 <= scale_bits && scale_bits <= 8, "scale_bits is ", scale_bits,
                    ", expected 2 to 8 with a super_block.");
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
          .global_scale = static_cast<float>(spec.global_scale),
          .minima = spec.has_minima(),
          .signed_scales = spec.has_signed_scales()};
}

int64_t fit_width(const GridSpec& spec, int64_t columns) {
  return spec.super_block == 0 ? group_width(spec, columns) : std::min(spec.super_block, columns);
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

namespace {

double smallest_scale(at::ScalarType type) {
  return type == at::kHalf ? 5.9604645e-8 : 1.17549435e-38;
}

// Positive values as `type` holds them. One too small becomes the smallest that it has: zero would
// divide to NaN.
at::Tensor held_in(at::ScalarType type, const at::Tensor& values) {
  const at::Tensor held = values.clamp_min(smallest_scale(type)).to(type).to(at::kFloat);
  TORCH_CHECK_VALUE(at::isfinite(held).all().item<bool>(), "a scale of up to ",
                    values.max().item<float>(), " does not fit ", type,
                    "; use scale_dtype=torch.float32 or torch.bfloat16.");
  return held;
}

// What makes the largest of the values `most` times it: values are [rows, groups of a super-block,
// …], not negative.
at::Tensor step_of(const at::Tensor& values, int64_t most, at::ScalarType type) {
  // Not divided: CUDA divides by a number as it multiplies by the inverse.
  return held_in(type, values.amax(1, /*keepdim=*/true).mul(1.0F / static_cast<float>(most)));
}

// Each as the nearest of least … most times step_of.
at::Tensor in_steps(const at::Tensor& values, int64_t least, int64_t most, at::ScalarType type) {
  const at::Tensor step = step_of(values, most, type);
  return values.div(step).round_().clamp_(least, most).mul_(step);
}

// Values of either sign, none of them 0, as the nearest of −most … most − 1 times a step whose sign
// lets the value of largest magnitude be −most of it. One too small for that keeps its sign.
at::Tensor in_signed_steps(const at::Tensor& values, int64_t most, at::ScalarType type) {
  const at::Tensor positive = values.amax(1, /*keepdim=*/true) > -values.amin(1, /*keepdim=*/true);
  const at::Tensor magnitude = step_of(values.abs(), most, type);
  const at::Tensor step = at::where(positive, -magnitude, magnitude);
  const at::Tensor codes = values.div(step).round_().clamp_(-most, most - 1);
  return at::where(codes == 0, values.sign() * step.sign(), codes).mul_(step);
}

Grid round_super_blocks(const at::Tensor& scale, const at::Tensor& zero, const GridSpec& spec) {
  const int64_t most = (int64_t{1} << spec.scale_bits) - 1;
  const int64_t width = spec.super_block / spec.group_size;
  const at::Tensor scales = at::empty_like(scale, at::MemoryFormat::Contiguous);
  const at::Tensor minima = at::empty_like(scales);
  for (int64_t first = 0; first < scale.size(1); first += width) {
    const auto part = [&](const at::Tensor& all) {
      return all.narrow(1, first, std::min(width, all.size(1) - first));
    };
    part(scales).copy_(
        spec.has_signed_scales()
            ? in_signed_steps(part(scale), int64_t{1} << (spec.scale_bits - 1), spec.scale_dtype)
            : in_steps(part(scale), 1, most, spec.scale_dtype));
    if (spec.has_minima()) part(minima).copy_(in_steps(part(zero), 0, most, spec.scale_dtype));
  }
  return {scales, spec.has_minima() ? minima : zero.to(at::kByte).contiguous(), spec};
}

}  // namespace

Grid round_grid(const at::Tensor& scale, const at::Tensor& zero, const GridSpec& spec) {
  if (spec.has_nested_scales()) {
    GridSpec found = spec;
    const float offset =
        spec.global_scale != 0 ? static_cast<float>(spec.global_scale) : nested_offset(scale);
    found.global_scale = offset;
    return {held_nested(scale, offset), zero.to(at::kByte).contiguous(), found};
  }
  if (spec.super_block != 0) return round_super_blocks(scale, zero, spec);
  if (spec.scale_dtype == at::kFloat8_e4m3fn) {  // nor is one of these zero
    const at::Tensor numbers = scale.mul(spec.global_scale).clamp_(E4m3::kStep, 448);
    const at::Tensor held = numbers.to(spec.scale_dtype).to(at::kFloat).div_(spec.global_scale);
    return {held.contiguous(), zero.to(at::kByte).contiguous(), spec};
  }
  return {held_in(spec.scale_dtype, scale).contiguous(), zero.to(at::kByte).contiguous(), spec};
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
  const at::Tensor importance =
      spec.range == Range::kGram ? gram->diagonal().contiguous() : at::Tensor();
  const at::Tensor block = spec.range == Range::kGramBlock ? gram->contiguous() : at::Tensor();
  if (spec.per_tensor) return fit_tensor_grid(checked, importance, block, spec);
  const auto [scale, zero] =
      fit_grid_stub(checked.device().type(), checked, importance, block, spec);
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
