// SPDX-License-Identifier: Apache-2.0
#include <ATen/TensorOperators.h>

#include <limits>

#include "../statistic_registry.hpp"
#include "../stubs.hpp"

namespace mlcalib {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

/// The extremes of each channel, float32 [channels]; +Inf and −Inf before the first token.
class ChannelRange final : public Statistic {
 public:
  ChannelRange(std::string name, int64_t channels)
      : Statistic(
            std::move(name), channels,
            {{.name = "low", .shape = {channels}, .adds = Part::Adds::kLeast, .empty = kInfinity},
             {.name = "high",
              .shape = {channels},
              .adds = Part::Adds::kGreatest,
              .empty = -kInfinity}}) {}

 protected:
  void add(const at::Tensor& x, const at::Tensor& /*reference*/) override {
    range_update_stub(x.device().type(), kept(0), kept(1), x);
  }

  void multiply(const std::vector<at::Tensor>& tensors, const at::Tensor& factors) override {
    for (const at::Tensor& each : tensors) each.mul_(factors);
  }
};

MLCALIB_STATISTIC("range", ChannelRange);

}  // namespace
}  // namespace mlcalib
