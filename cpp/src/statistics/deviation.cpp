// SPDX-License-Identifier: Apache-2.0
#include <ATen/TensorOperators.h>
#include <ATen/ops/zeros.h>

#include "../statistic_registry.hpp"

namespace mlcalib {
namespace {

/// E = Σ (f − x) xᵀ over tokens, float32 [channels, channels], where f is the reference: the
/// cross-Gram of the float and the quantized model's activations, less the Gram of the latter.
class Deviation final : public Statistic {
 public:
  Deviation(std::string name, int64_t channels)
      : Statistic(std::move(name), channels),
        deviation_(at::zeros({channels, channels}, at::kFloat)) {}

  bool compares() const override { return true; }

 protected:
  void add(const at::Tensor& x, const at::Tensor& reference) override {
    const at::Tensor rows = x.to(at::kFloat);
    // The difference before the product: both Grams are far larger than what they differ by.
    deviation_.addmm_((reference.to(at::kFloat) - rows).t(), rows);
  }

  void add(const Statistic& other, double weight) override {
    deviation_.add_(static_cast<const Deviation&>(other).deviation_, weight);
  }

  void multiply(const at::Tensor& factors) override {
    deviation_.mul_(factors).mul_(factors.unsqueeze(1));
  }

  at::Device device() const override { return deviation_.device(); }
  void move(at::Device device) override { deviation_ = deviation_.to(device); }
  TensorMap tensors() const override { return {{"deviation", deviation_}}; }
  void set_tensors(const TensorMap& tensors) override {
    deviation_ = tensors.at("deviation").clone();
  }

 private:
  at::Tensor deviation_;
};

MLCALIB_STATISTIC("deviation", Deviation);

}  // namespace
}  // namespace mlcalib
