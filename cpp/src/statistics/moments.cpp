// SPDX-License-Identifier: Apache-2.0
#include <ATen/TensorOperators.h>
#include <ATen/ops/zeros.h>

#include "../statistic_registry.hpp"
#include "../stubs.hpp"

namespace mlcalib {
namespace {

/// Σ x, Σ |x| and Σ x² of each channel over tokens, float64 [channels].
class Moments final : public Statistic {
 public:
  Moments(std::string name, int64_t channels)
      : Statistic(std::move(name), channels),
        sum_(at::zeros({channels}, at::kDouble)),
        absolute_(at::zeros({channels}, at::kDouble)),
        square_(at::zeros({channels}, at::kDouble)) {}

 protected:
  void add(const at::Tensor& x, const at::Tensor& /*reference*/) override {
    moments_update_stub(x.device().type(), sum_, absolute_, square_, x);
  }

  void add(const Statistic& other, double weight) override {
    const auto& moments = static_cast<const Moments&>(other);
    sum_.add_(moments.sum_, weight);
    absolute_.add_(moments.absolute_, weight);
    square_.add_(moments.square_, weight);
  }

  void multiply(const at::Tensor& factors) override {
    sum_.mul_(factors);
    absolute_.mul_(factors);
    square_.mul_(factors).mul_(factors);
  }

  at::Device device() const override { return sum_.device(); }
  void move(at::Device device) override {
    for (at::Tensor* each : {&sum_, &absolute_, &square_}) *each = each->to(device);
  }

  TensorMap tensors() const override {
    return {{"sum", sum_}, {"absolute", absolute_}, {"square", square_}};
  }

  void set_tensors(const TensorMap& tensors) override {
    sum_ = tensors.at("sum").clone();
    absolute_ = tensors.at("absolute").clone();
    square_ = tensors.at("square").clone();
  }

 private:
  at::Tensor sum_, absolute_, square_;
};

MLCALIB_STATISTIC("moments", Moments);

}  // namespace
}  // namespace mlcalib
