// SPDX-License-Identifier: Apache-2.0
// The Gram of every instruction set that this machine has, against double.
#include <ATen/ops/full.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>

#include "cpu/kernels/kernels.hpp"
#include "reference.hpp"

namespace mlcalib::cpu {
namespace {

using reference::Matrix;

using Gram = std::vector<float>;

Element element_of(at::ScalarType type) {
  return type == at::kFloat ? Element::kFloat
                            : (type == at::kHalf ? Element::kHalf : Element::kBFloat16);
}

// The upper triangle of start + xᵀx, tiles at most `at_once` at a time; x is [tokens, channels].
Gram run(const GramKernels& kernels, const at::Tensor& x, float start, int64_t at_once) {
  const int64_t channels = x.size(1);
  const int64_t groups = (channels + kernels.columns - 1) / kernels.columns;
  const Activations activations{.data = x.const_data_ptr(),
                                .element = element_of(x.scalar_type()),
                                .tokens = x.size(0),
                                .channels = channels,
                                .stride = x.stride(0)};
  const int64_t steps = kernels.steps(activations.element, activations.tokens);
  std::vector<float> packed(steps * groups * kernels.columns);
  const int64_t strips = groups * (kernels.columns / kernels.strip);
  for (int64_t strip = 0; strip < strips; ++strip) {
    kernels.pack(activations, strip, strip + 1, packed.data());
  }
  Gram gram(channels * channels, start);
  for (int64_t group = 0; group < groups; ++group) {
    const int64_t tiles = (group + 1) * (kernels.columns / kernels.rows);
    for (int64_t first = 0; first < tiles; first += at_once) {
      kernels.tiles(packed.data(), activations.element, steps, channels, group, first,
                    std::min(first + at_once, tiles), gram.data());
    }
  }
  return gram;
}

class GramKernelTest
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

  const GramKernels& kernels_ = *std::get<0>(GetParam())->gram;
};

TEST_P(GramKernelTest, ShapesFitTogether) {
  EXPECT_EQ(kernels_.columns % kernels_.strip, 0);
  EXPECT_EQ(kernels_.columns % kernels_.rows, 0);
  EXPECT_EQ(kernels_.strip % kernels_.rows, 0);
}

TEST_P(GramKernelTest, AddsTheSumOfProducts) {
  for (const int64_t channels : {1, 7, 24, 47, 48, 49, 130}) {
    for (const int64_t tokens : {1, 2, 33, 256}) {
      const at::Tensor x = make(tokens, channels);
      const Matrix wanted = reference::gram(reference::to_matrix(x));
      const Gram found = run(kernels_, x, 0.5F, 3);
      for (int64_t i = 0; i < channels; ++i) {
        for (int64_t j = i; j < channels; ++j) {
          const double size = std::sqrt(wanted(i, i) * wanted(j, j)) + 0.5;
          ASSERT_NEAR(found[i * channels + j], wanted(i, j) + 0.5, 1e-5 * size)
              << tokens << " tokens, entry " << i << ", " << j << " of " << channels;
        }
      }
    }
  }
}

// However the tiles are shared out between threads.
TEST_P(GramKernelTest, SharesDoNotChangeBits) {
  const at::Tensor x = make(65, 130);
  const Gram wanted = run(kernels_, x, 0, 1);
  for (const int64_t at_once : {5, 1000}) EXPECT_EQ(run(kernels_, x, 0, at_once), wanted);
}

INSTANTIATE_TEST_SUITE_P(
    Isa, GramKernelTest,
    testing::Combine(testing::ValuesIn(std::vector<const KernelTable*>(available_kernels().begin(),
                                                                       available_kernels().end())),
                     testing::Values(at::kFloat, at::kBFloat16, at::kHalf)),
    [](const auto& each) {
      return std::string(std::get<0>(each.param)->name) + "_" +
             c10::toString(std::get<1>(each.param));
    });

}  // namespace
}  // namespace mlcalib::cpu
