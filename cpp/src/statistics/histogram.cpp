// SPDX-License-Identifier: Apache-2.0
#include "../histogram.hpp"

#include <ATen/TensorOperators.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>
#include <c10/util/Exception.h>

#include "../statistic_registry.hpp"
#include "../stubs.hpp"

namespace mlcalib {
namespace {

/// How many tokens have which magnitude: counts float64 [channels, 128] of |x| / unit, in bins of a
/// quarter octave, and unit float32 [channels], 1 until the channels are rescaled.
class Histogram final : public Statistic {
 public:
  Histogram(std::string name, int64_t channels)
      : Statistic(std::move(name), channels),
        counts_(at::zeros({channels, kHistogramBins}, at::kDouble)),
        unit_(at::ones({channels}, at::kFloat)) {}

 protected:
  void add(const at::Tensor& x, const at::Tensor& /*reference*/) override {
    histogram_update_stub(x.device().type(), counts_, unit_, x);
  }

  void add(const Statistic& other, double weight) override {
    const auto& histogram = static_cast<const Histogram&>(other);
    if (tokens() == 0 && !counts_.any().item<bool>()) unit_ = histogram.unit_.clone();
    TORCH_CHECK_VALUE(at::equal(unit_, histogram.unit_),
                      "cannot merge histograms whose channels were rescaled by different factors: "
                      "their bins are not the same. Merge them first, then rescale.");
    counts_.add_(histogram.counts_, weight);
  }

  void multiply(const at::Tensor& factors) override { unit_.mul_(factors); }

  at::Device device() const override { return counts_.device(); }
  void move(at::Device device) override {
    counts_ = counts_.to(device);
    unit_ = unit_.to(device);
  }

  TensorMap tensors() const override { return {{"counts", counts_}, {"unit", unit_}}; }

  void set_tensors(const TensorMap& tensors) override {
    counts_ = tensors.at("counts").clone();
    unit_ = tensors.at("unit").clone();
  }

 private:
  at::Tensor counts_, unit_;
};

MLCALIB_STATISTIC("histogram", Histogram);

}  // namespace
}  // namespace mlcalib
