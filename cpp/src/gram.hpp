// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <mlcalib/statistic.hpp>

namespace mlcalib {

/// G = Σ x xᵀ over tokens, float32 [channels, channels]. One triangle is summed, in the device's
/// own layout, and unpacked when it is asked for.
class Gram final : public Statistic {
 public:
  Gram(std::string name, int64_t channels);

  const at::Tensor& sums() const { return sums_; }

 protected:
  void add(const at::Tensor& x, const at::Tensor& reference) override;
  void add(const Statistic& other, double weight) override;
  void multiply(const at::Tensor& factors) override;
  at::Device device() const override { return sums_.device(); }
  void move(at::Device device) override;
  TensorMap tensors() const override;
  void set_tensors(const TensorMap& tensors) override;

 private:
  at::Tensor unpacked() const;
  void pack(const at::Tensor& gram);

  at::Tensor sums_;
};

/// The sums of xᵀx of x [tokens, channels].
at::Tensor gram_sums_of(const at::Tensor& x);

/// xᵀx of x [tokens, channels].
at::Tensor gram_of(const at::Tensor& x);

}  // namespace mlcalib
