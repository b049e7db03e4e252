// SPDX-License-Identifier: Apache-2.0
// What the AMX kernel promises of its sums, on emulated tiles and on the machine's: bounds, not
// tolerances, so that a product too few shows.
#include <ATen/ops/empty.h>

#include <cmath>
#include <limits>
#include <random>

#include "amx_emulation.hpp"
#include "gram_kernels.hpp"
#include "reference.hpp"

namespace mlcalib::cpu {
namespace {

using gram_kernels::Gram;
using gram_kernels::NamedKernels;
using gram_kernels::run;
using reference::Matrix;

constexpr double kRounding = 0x1p-24;

class AmxGramTest : public testing::TestWithParam<NamedKernels> {
 protected:
  const GramKernels& kernels_ = *GetParam().kernels;
};

// Signs, exponents from -10 to 9 and random digits.
at::Tensor random_values(int64_t tokens, int64_t channels, at::ScalarType type) {
  std::mt19937 random(7);
  std::uniform_real_distribution<double> digits(1, 2);
  Matrix x(tokens, channels);
  for (double& value : x.reshaped()) {
    value = std::ldexp(random() % 2 == 0 ? digits(random) : -digits(random),
                       static_cast<int>(random() % 20) - 10);
  }
  return reference::to_tensor(x).to(type);
}

template <class Check>
void for_each_entry(const Gram& found, const at::Tensor& x, Check check) {
  const Matrix values = reference::to_matrix(x);
  const Matrix wanted = reference::gram(values), sizes = reference::gram(values.cwiseAbs());
  for (int64_t i = 0; i < x.size(1); ++i) {
    for (int64_t j = i; j < x.size(1); ++j) {
      SCOPED_TRACE(testing::Message() << "entry " << i << ", " << j);
      check(static_cast<double>(found[i * x.size(1) + j]), wanted(i, j), sizes(i, j));
      if (testing::Test::HasFailure()) return;
    }
  }
}

// Products of one token: no sum rounds, so nothing may be missing.
TEST_P(AmxGramTest, ProductsOfSixteenBitsAreExact) {
  for (const at::ScalarType type : {at::kBFloat16, at::kHalf}) {
    SCOPED_TRACE(c10::toString(type));
    const at::Tensor x = random_values(1, 130, type);
    for_each_entry(run(kernels_, x, 0, 1000), x,
                   [](double found, double wanted, double) { ASSERT_EQ(found, wanted); });
  }
}

// 2^-24 for the products left out; six are added, the first exactly. The smallest that is taken can
// be 2^-16.
TEST_P(AmxGramTest, ProductsOfFloatsLoseNoMoreThanStated) {
  const at::Tensor x = random_values(1, 130, at::kFloat);
  // Both lower terms large, with the same sign: where terms left out would show most.
  float* values = x.data_ptr<float>();
  for (int64_t i = 0; i < 8; ++i) values[i] = 1 + 0x1p-8F - 0x1p-17F + 0x1p-23F * i;
  for_each_entry(run(kernels_, x, 0, 1000), x, [](double found, double wanted, double size) {
    ASSERT_NEAR(found, wanted, (1 + 5 * 1.02) * kRounding * size);
  });
}

TEST_P(AmxGramTest, SumsLoseNoMoreThanStated) {
  const std::pair<at::ScalarType, int> products_of[] = {
      {at::kBFloat16, 1}, {at::kHalf, 4}, {at::kFloat, 6}};
  for (const auto& [type, products] : products_of) {
    SCOPED_TRACE(c10::toString(type));
    const int64_t tokens = 320;
    const at::Tensor x = random_values(tokens, 70, type);
    const double roundings = 16.0 + tokens / 32.0 * products;
    for_each_entry(run(kernels_, x, 0, 1000), x,
                   [roundings](double found, double wanted, double size) {
                     ASSERT_NEAR(found, wanted, (1 + 1.02 * roundings) * kRounding * size);
                   });
  }
}

TEST_P(AmxGramTest, NothingUndefinedIsLost) {
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16, at::kHalf}) {
    SCOPED_TRACE(c10::toString(type));
    for (const float value : {std::numeric_limits<float>::quiet_NaN(),
                              std::numeric_limits<float>::infinity(), std::bit_cast<float>(~0U)}) {
      const at::Tensor x = random_values(40, 40, type);
      x[37][3] = value;
      const Gram found = run(kernels_, x, 0, 1000);
      for (int64_t i = 0; i < 40; ++i) {
        for (int64_t j = i; j < 40; ++j) {
          ASSERT_EQ(std::isfinite(found[i * 40 + j]), i != 3 && j != 3) << i << ", " << j;
        }
      }
    }
  }
}

// 4 KiB of packed activations a channel, whatever the type.
TEST_P(AmxGramTest, PackedMemoryIsBounded) {
  for (const Element element : {Element::kFloat, Element::kBFloat16, Element::kHalf}) {
    const int64_t tokens = kernels_.tokens(element);
    EXPECT_GE(tokens, 256);
    EXPECT_LE(kernels_.steps(element, tokens) * sizeof(float), 4096);
  }
}

INSTANTIATE_TEST_SUITE_P(Tiles, AmxGramTest, testing::ValuesIn(gram_kernels::amx()),
                         [](const auto& each) { return each.param.name; });

// Left configured, they would be saved with every switch between threads.
TEST(EmulatedAmxGramTest, TilesAreReleased) {
  run(amx_emulated::gram_kernels, random_values(33, 40, at::kHalf), 0, 1);
  EXPECT_FALSE(amx_emulation::configured());
}

}  // namespace
}  // namespace mlcalib::cpu
