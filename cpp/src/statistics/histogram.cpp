// SPDX-License-Identifier: Apache-2.0
#include "../histogram.hpp"

#include <ATen/TensorOperators.h>

#include "../statistic_registry.hpp"
#include "../stubs.hpp"

namespace mlcalib {
namespace {

/// How many tokens have which magnitude: counts float64 [channels, 128] of |x| / unit, in bins of a
/// quarter octave, and unit float32 [channels], 1 until the channels are rescaled.
class Histogram final : public Statistic {
 public:
  Histogram(std::string name, int64_t channels)
      : Statistic(std::move(name), channels,
                  {{.name = "counts", .shape = {channels, kHistogramBins}, .dtype = at::kDouble},
                   {.name = "unit", .shape = {channels}, .adds = Part::Adds::kAlike, .empty = 1}}) {
  }

 protected:
  void add(const at::Tensor& x, const at::Tensor& /*reference*/) override {
    histogram_update_stub(x.device().type(), kept(0), kept(1), x);
  }

  void multiply(const std::vector<at::Tensor>& tensors, const at::Tensor& factors) override {
    tensors[1].mul_(factors);
  }
};

MLCALIB_STATISTIC("histogram", Histogram);

}  // namespace
}  // namespace mlcalib
