// SPDX-License-Identifier: Apache-2.0
#include <ATen/TensorOperators.h>
#include <ATen/ops/zeros.h>

#include "../statistic_registry.hpp"
#include "../stubs.hpp"

namespace mlcalib {
namespace {

/// G = Σ x xᵀ over tokens, float32 [channels, channels]. One triangle is accumulated.
class Gram final : public Statistic {
 public:
  Gram(std::string name, int64_t channels)
      : Statistic(std::move(name), channels), gram_(at::zeros({channels, channels}, at::kFloat)) {}

 protected:
  void add(const at::Tensor& x, const at::Tensor& /*reference*/) override {
    gram_update_stub(x.device().type(), gram_, x);
  }

  void add(const Statistic& other, double weight) override {
    gram_.add_(static_cast<const Gram&>(other).gram_, weight);
  }

  void multiply(const at::Tensor& factors) override {
    gram_.mul_(factors).mul_(factors.unsqueeze(1));
  }

  at::Device device() const override { return gram_.device(); }
  void move(at::Device device) override { gram_ = gram_.to(device); }

  TensorMap tensors() const override {
    mirror_stub(gram_.device().type(), gram_);  // the other triangle is free for it
    return {{"gram", gram_}};
  }

  void set_tensors(const TensorMap& tensors) override {
    // Contiguous: mirror tells the triangles apart by where they lie.
    gram_ = tensors.at("gram").clone(at::MemoryFormat::Contiguous);
  }

 private:
  at::Tensor gram_;
};

MLCALIB_STATISTIC("gram", Gram);

}  // namespace
}  // namespace mlcalib
