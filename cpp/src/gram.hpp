// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <mlcalib/statistic.hpp>

namespace mlcalib {

/// G = Σ x xᵀ over tokens, float32 [channels, channels]. One triangle is summed, in the device's
/// own layout, and unpacked when it is asked for.
class Gram final : public Statistic {
 public:
  Gram(std::string name, int64_t channels);

  /// The sums, undefined of no tokens, and what keeps them as they are.
  struct Held {
    std::shared_lock<std::shared_mutex> lock;
    at::Tensor sums;
  };
  Held held() const;

 protected:
  void add(const at::Tensor& x, const at::Tensor& reference) override;
  void multiply(const std::vector<at::Tensor>& tensors, const at::Tensor& factors) override;
};

/// xᵀx of x [tokens, channels].
at::Tensor gram_of(const at::Tensor& x);

}  // namespace mlcalib
