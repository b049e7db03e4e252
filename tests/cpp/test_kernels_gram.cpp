// SPDX-License-Identifier: Apache-2.0
// The Gram of every instruction set that this machine has, and of AMX emulated, against double.
#include <ATen/ops/full.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>

#include "cpu/kernels/kernels.hpp"
#include "gram_kernels.hpp"
#include "reference.hpp"

namespace mlcalib::cpu {
namespace {

using gram_kernels::Gram;
using gram_kernels::NamedKernels;
using gram_kernels::run;
using reference::Matrix;

class GramKernelTest : public testing::TestWithParam<std::tuple<NamedKernels, at::ScalarType>> {
 protected:
  // Columns of a wider tensor whose others are NaN: reading one would show.
  at::Tensor make(int64_t tokens, int64_t channels) const {
    const at::Tensor wide = at::full(
        {tokens, channels + 5}, std::numeric_limits<double>::quiet_NaN(), std::get<1>(GetParam()));
    const at::Tensor x = wide.narrow(1, 2, channels);
    x.copy_(reference::to_tensor(reference::activations(tokens, channels, 1)));
    return x;
  }

  const GramKernels& kernels_ = *std::get<0>(GetParam()).kernels;
};

TEST_P(GramKernelTest, ShapesFitTogether) {
  EXPECT_EQ(kernels_.columns % kernels_.strip, 0);
  EXPECT_EQ(kernels_.columns % kernels_.rows, 0);
  EXPECT_EQ(kernels_.strip % kernels_.rows, 0);
}

TEST_P(GramKernelTest, AddsTheSumOfProducts) {
  for (const int64_t channels : {1, 7, 24, 47, 48, 49, 96, 130}) {
    for (const int64_t tokens : {1, 2, 33, 256, 300}) {
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

INSTANTIATE_TEST_SUITE_P(Isa, GramKernelTest,
                         testing::Combine(testing::ValuesIn(gram_kernels::all()),
                                          testing::Values(at::kFloat, at::kBFloat16, at::kHalf)),
                         [](const auto& each) {
                           return std::get<0>(each.param).name + "_" +
                                  c10::toString(std::get<1>(each.param));
                         });

}  // namespace
}  // namespace mlcalib::cpu
