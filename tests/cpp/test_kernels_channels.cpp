// SPDX-License-Identifier: Apache-2.0
// Sums, extremes and histograms of channels, of every instruction set that this machine has,
// against double.
#include <ATen/ops/full.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>

#include "cpu/activations.hpp"
#include "histogram.hpp"
#include "reference.hpp"

namespace mlcalib::cpu {
namespace {

class ChannelKernelTest
    : public testing::TestWithParam<std::tuple<const KernelTable*, at::ScalarType>> {
 protected:
  // Columns of a wider tensor whose others are NaN: reading one would show.
  at::Tensor make(int64_t tokens, int64_t channels) const {
    const at::Tensor wide = at::full(
        {tokens, channels + 5}, std::numeric_limits<double>::quiet_NaN(), std::get<1>(GetParam()));
    const at::Tensor x = wide.narrow(1, 2, channels);
    x.copy_(reference::to_tensor(reference::activations(tokens, channels, 1)));
    return x;
  }

  const ChannelKernels& kernels_ = *std::get<0>(GetParam())->channels;
};

TEST_P(ChannelKernelTest, AgreeWithDouble) {
  for (const int64_t channels : {1, 7, 16, 17, 50}) {
    for (const int64_t tokens : {1, 2, 33, 256}) {
      const at::Tensor x = make(tokens, channels);
      const reference::Matrix values = reference::to_matrix(x);
      const int64_t strips = (channels + kernels_.strip - 1) / kernels_.strip;
      std::vector<double> sum(channels, 1), absolute(channels, 2), square(channels, 3);
      std::vector<float> low(channels, 0.25F), high(channels, -0.25F);
      for (int64_t strip = 0; strip < strips; ++strip) {
        kernels_.moments(activations(x, 0, tokens), strip, strip + 1, sum.data(), absolute.data(),
                         square.data());
        kernels_.range(activations(x, 0, tokens), strip, strip + 1, low.data(), high.data());
      }
      for (int64_t c = 0; c < channels; ++c) {
        const double size = values.col(c).cwiseAbs().sum() * 1e-6;
        EXPECT_NEAR(sum[c], 1 + values.col(c).sum(), size);
        EXPECT_NEAR(absolute[c], 2 + values.col(c).cwiseAbs().sum(), size);
        EXPECT_NEAR(square[c], 3 + values.col(c).squaredNorm(), values.col(c).squaredNorm() * 1e-6);
        EXPECT_EQ(low[c], std::min(0.25F, static_cast<float>(values.col(c).minCoeff())));
        EXPECT_EQ(high[c], std::max(-0.25F, static_cast<float>(values.col(c).maxCoeff())));
      }
    }
  }
}

TEST_P(ChannelKernelTest, HistogramsAreExact) {
  for (const int64_t channels : {1, 7, 16, 17, 50}) {
    for (const int64_t tokens : {1, 33, 256}) {
      const at::Tensor x = make(tokens, channels);
      std::vector<float> unit(channels);
      for (int64_t c = 0; c < channels; ++c) unit[c] = std::exp2(static_cast<float>(c % 40) - 20);
      std::vector<double> counts(channels * kHistogramBins, 0.5), wanted = counts;
      const int64_t strips = (channels + kernels_.strip - 1) / kernels_.strip;
      kernels_.histogram(activations(x, 0, tokens), 0, strips, unit.data(), counts.data());
      const at::Tensor values = x.to(at::kDouble).contiguous();
      for (int64_t t = 0; t < tokens; ++t) {
        for (int64_t c = 0; c < channels; ++c) {
          int exponent = 0;  // of |x| = fraction · 2^exponent, the fraction from a half on
          const double fraction = std::frexp(
              std::abs(values.const_data_ptr<double>()[t * channels + c]) / unit[c], &exponent);
          const double bin = 4.0 * (exponent - 1 + 16) + std::floor((fraction * 2 - 1) * 4);
          const double inside = fraction == 0 ? 0 : std::clamp(bin, 0.0, kHistogramBins - 1.0);
          wanted[c * kHistogramBins + static_cast<int64_t>(inside)] += 1;
        }
      }
      EXPECT_EQ(counts, wanted);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(EveryInstructionSet, ChannelKernelTest,
                         testing::Combine(testing::ValuesIn(available_kernels().begin(),
                                                            available_kernels().end()),
                                          testing::Values(at::kFloat, at::kBFloat16, at::kHalf)),
                         [](const auto& each) {
                           return std::string(std::get<0>(each.param)->name) + "_" +
                                  c10::toString(std::get<1>(each.param));
                         });

}  // namespace
}  // namespace mlcalib::cpu
