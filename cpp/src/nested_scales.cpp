// SPDX-License-Identifier: Apache-2.0
// As create_dynamic_map and the torch backend's quantize_blockwise of bitsandbytes 0.50 do, bit for
// bit; its kernel for CPUs does not always take the nearest number.
#include "nested_scales.hpp"

#include <ATen/TensorOperators.h>
#include <ATen/ops/bucketize.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/linspace.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/where.h>

#include <algorithm>
#include <array>
#include <tuple>
#include <vector>

namespace mlcalib {
namespace {

constexpr int64_t kBlock = 256;
constexpr int64_t kLast = 255;
constexpr double kSmallest = 1.17549435e-38;  // a block of equal scales is zeros, and not NaN

// The nearest of sorted numbers; of two the lower one.
at::Tensor nearest(const at::Tensor& x, const at::Tensor& numbers) {
  const at::Tensor above = at::bucketize(x, numbers, /*out_int32=*/false, /*right=*/true);
  const at::Tensor low = numbers.take((above - 1).clamp_(0, kLast));
  const at::Tensor high = numbers.take(above.clamp(0, kLast));
  return at::where((high - x).abs() < (x - low).abs(), high, low);
}

}  // namespace

at::Tensor nested_numbers() {
  constexpr std::array kPowers{1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0};
  std::vector<at::Tensor> parts{at::tensor({0.0F, 1.0F})};
  int64_t count = 1;
  for (const double power : kPowers) {
    const at::Tensor bounds = at::linspace(0.1, 1, count + 1, at::kFloat);
    const at::Tensor middle = (bounds.narrow(0, 0, count) + bounds.narrow(0, 1, count)).div_(2.0);
    parts.push_back(middle * power);
    parts.push_back(middle * -power);
    count *= 2;
  }
  return std::get<0>(at::cat(parts).sort());
}

float nested_offset(const at::Tensor& scale) {
  const at::Tensor host = scale.to(at::kCPU).contiguous().flatten();
  return std::max(host.mean().item<float>(), static_cast<float>(kSmallest));
}

at::Tensor held_nested(const at::Tensor& scale, float offset) {
  const at::Tensor host = scale.to(at::kCPU).contiguous().flatten();
  const int64_t missing = (kBlock - host.numel() % kBlock) % kBlock;
  const at::Tensor left = at::constant_pad_nd(host - offset, {0, missing}).view({-1, kBlock});
  const at::Tensor largest = left.abs().amax(1, /*keepdim=*/true).clamp_min_(kSmallest);
  const at::Tensor held = nearest(left / largest, nested_numbers()).mul_(largest).add_(offset);
  return held.flatten().narrow(0, 0, host.numel()).view(scale.sizes()).to(scale.device());
}

}  // namespace mlcalib
