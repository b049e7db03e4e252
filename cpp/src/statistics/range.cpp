// SPDX-License-Identifier: Apache-2.0
#include <ATen/ops/full.h>
#include <ATen/ops/maximum.h>
#include <ATen/ops/minimum.h>
#include <c10/util/Exception.h>

#include <limits>

#include "../statistic_registry.hpp"
#include "../stubs.hpp"

namespace mlcalib {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// The extremes of each channel, float32 [channels]; +Inf and −Inf before the first token. They add
/// up as extremes do: a weight says only whether the other side counts (0: not at all).
class ChannelRange final : public Statistic {
 public:
  ChannelRange(std::string name, int64_t channels)
      : Statistic(std::move(name), channels),
        low_(at::full({channels}, kInfinity, at::kFloat)),
        high_(at::full({channels}, -kInfinity, at::kFloat)) {}

 protected:
  void add(const at::Tensor& x, const at::Tensor& /*reference*/) override {
    range_update_stub(x.device().type(), low_, high_, x);
  }

  void add(const Statistic& other, double weight) override {
    TORCH_CHECK_VALUE(weight >= 0, "cannot merge a range with the weight ", weight,
                      ": extremes cannot be taken away; expected a weight of 0 or more.");
    if (weight == 0) return;
    const auto& range = static_cast<const ChannelRange&>(other);
    low_ = at::minimum(low_, range.low_);
    high_ = at::maximum(high_, range.high_);
  }

  void multiply(const at::Tensor& factors) override {
    low_.mul_(factors);
    high_.mul_(factors);
  }

  at::Device device() const override { return low_.device(); }
  void move(at::Device device) override {
    low_ = low_.to(device);
    high_ = high_.to(device);
  }

  TensorMap tensors() const override { return {{"low", low_}, {"high", high_}}; }

  void set_tensors(const TensorMap& tensors) override {
    low_ = tensors.at("low").clone();
    high_ = tensors.at("high").clone();
  }

 private:
  at::Tensor low_, high_;
};

MLCALIB_STATISTIC("range", ChannelRange);

}  // namespace
}  // namespace mlcalib
