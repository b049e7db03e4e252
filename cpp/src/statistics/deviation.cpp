// SPDX-License-Identifier: Apache-2.0
#include <ATen/TensorOperators.h>

#include "../statistic_registry.hpp"
#include "../stubs.hpp"

namespace mlcalib {
namespace {

/// E = Σ (f − x) xᵀ over tokens, float32 [channels, channels], where f is the reference: the
/// cross-Gram of the float and the quantized model's activations, less the Gram of the latter.
class Deviation final : public Statistic {
 public:
  Deviation(std::string name, int64_t channels)
      : Statistic(std::move(name), channels,
                  {{.name = "deviation", .shape = {channels, channels}}}) {}

  bool compares() const override { return true; }

 protected:
  void add(const at::Tensor& x, const at::Tensor& reference) override {
    deviation_update_stub(x.device().type(), kept(0), x, reference);
  }

  void multiply(const std::vector<at::Tensor>& tensors, const at::Tensor& factors) override {
    tensors.front().mul_(factors).mul_(factors.unsqueeze(1));
  }
};

MLCALIB_STATISTIC("deviation", Deviation);

}  // namespace
}  // namespace mlcalib
