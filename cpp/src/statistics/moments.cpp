// SPDX-License-Identifier: Apache-2.0
#include <ATen/TensorOperators.h>

#include "../statistic_registry.hpp"
#include "../stubs.hpp"

namespace mlcalib {
namespace {

/// Σ x, Σ |x| and Σ x² of each channel over tokens, float64 [channels].
class Moments final : public Statistic {
 public:
  Moments(std::string name, int64_t channels)
      : Statistic(std::move(name), channels,
                  {{.name = "sum", .shape = {channels}, .dtype = at::kDouble},
                   {.name = "absolute", .shape = {channels}, .dtype = at::kDouble},
                   {.name = "square", .shape = {channels}, .dtype = at::kDouble}}) {}

 protected:
  void add(const at::Tensor& x, const at::Tensor& /*reference*/) override {
    moments_update_stub(x.device().type(), kept(0), kept(1), kept(2), x);
  }

  void multiply(const std::vector<at::Tensor>& tensors, const at::Tensor& factors) override {
    tensors[0].mul_(factors);
    tensors[1].mul_(factors);
    tensors[2].mul_(factors).mul_(factors);
  }
};

MLCALIB_STATISTIC("moments", Moments);

}  // namespace
}  // namespace mlcalib
