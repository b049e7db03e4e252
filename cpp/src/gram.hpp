// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <mlcalib/statistic.hpp>

namespace mlcalib {

/// G = Σ x xᵀ over tokens, float32 [channels, channels]. One triangle is summed, in the device's
/// own layout, and unpacked when it is asked for.
class Gram final : public Statistic {
 public:
  Gram(std::string name, int64_t channels);

  /// ⟨D, G⟩ of the Gram D of a change, by its sums. Throws ValueError where they are on another
  /// device.
  double dot(const at::Tensor& sums) const;

 protected:
  void add(const at::Tensor& x, const at::Tensor& reference) override;
  void multiply(const std::vector<at::Tensor>& tensors, const at::Tensor& factors) override;
};

/// The sums of xᵀx of x [tokens, channels].
at::Tensor gram_sums_of(const at::Tensor& x);

/// xᵀx of x [tokens, channels].
at::Tensor gram_of(const at::Tensor& x);

}  // namespace mlcalib
