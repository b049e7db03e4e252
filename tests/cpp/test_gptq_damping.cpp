// SPDX-License-Identifier: Apache-2.0
// What GPTQ does where a Gram or an option is not as it should be.
#include <ATen/TensorOperators.h>
#include <ATen/ops/zeros.h>

#include <cmath>
#include <mlcalib/gptq.hpp>

#include "reference.hpp"

namespace mlcalib {
namespace {

using reference::expect_error;
using reference::Matrix;
using reference::random_gram;
using reference::random_weight;
using reference::same_bits;
using reference::to_matrix;

constexpr int64_t kChannels = 64;

// All eigenvalues are one but the smallest, which is `smallest`; so nearly is the mean of the
// diagonal.
at::Tensor gram_with_smallest(double smallest) {
  const Matrix direction = to_matrix(random_weight(1, kChannels, 1)).normalized();
  return reference::to_tensor(Matrix::Identity(kChannels, kChannels) -
                              (1 - smallest) * reference::gram(direction));
}

struct DampCase : reference::Named {
  double smallest, asked, used;
};

class DampTest : public testing::TestWithParam<DampCase> {};

TEST_P(DampTest, RisesUntilTheGramIsPositiveDefinite) {
  const double asked = GetParam().asked;
  const at::Tensor weight = random_weight(20, kChannels, 2),
                   gram = gram_with_smallest(GetParam().smallest);
  ASSERT_GE(to_matrix(gram).diagonal().minCoeff(), 0);
  const GptqOptions options{.grid = {.group_size = 32, .range = Range::kMse}, .damp = asked};
  const QuantizedLinear found = gptq(weight, gram, options);
  EXPECT_NEAR(found.damp, GetParam().used, 1e-9);
  // As if it had been asked for; the loss is still that of the Gram that was given.
  GptqOptions direct = options;
  direct.damp = found.damp;
  EXPECT_TRUE(same_bits(found.codes, gptq(weight, gram, direct).codes));
  const double wanted = reference::loss(weight, to_matrix(found.dequantize()), gram);
  EXPECT_NEAR(*found.loss, wanted, 1e-4 * std::abs(wanted));
}

INSTANTIATE_TEST_SUITE_P(Steps, DampTest,
                         testing::Values(DampCase{"None", 0.001, 0.01, 0.01},
                                         DampCase{"Enough", -0.005, 0.01, 0.01},
                                         DampCase{"One", -0.03, 0.01, 0.1},
                                         DampCase{"Two", -0.3, 0.01, 1},
                                         DampCase{"FromSmall", -0.03, 1e-4, 0.1}),
                         reference::name_of<DampCase>);

TEST(Damping, PastItsLimitIsALinAlgError) {
  const at::Tensor weight = random_weight(20, kChannels, 2);
  // Not a Gram: an off-diagonal pair far above its diagonal.
  const at::Tensor gram = random_gram(kChannels, 3);
  gram[3][40] = gram[40][3] = 100 * gram.diagonal().max().item<float>();
  for (const double damp : {0.01, 5.0}) {
    expect_error<c10::LinAlgError>([&] { gptq(weight, gram, {.damp = damp}); },
                                   {"not positive definite", "damping", "asked: "});
  }
  const at::Tensor negative = random_gram(kChannels, 3);
  negative[7][7] = -1;
  expect_error<c10::LinAlgError>([&] { gptq(weight, negative); },
                                 {"not positive definite", "diagonal goes down to -1"});
}

TEST(Damping, AZeroGramIsAValueError) {
  expect_error<c10::ValueError>(
      [] {
        gptq(random_weight(4, kChannels, 2), at::zeros({kChannels, kChannels}));
      },
      {"the Gram is zero", "rtn"});
}

// Rank one: as good as all of H is damping.
TEST(Damping, CarriesAGramOfOneToken) {
  const at::Tensor weight = random_weight(30, kChannels, 4);
  const Matrix x = reference::activations(1, kChannels, 5);
  const at::Tensor gram = reference::to_tensor(reference::gram(x));
  const QuantizedLinear found = gptq(weight, gram);
  const double wanted = reference::loss(weight, to_matrix(found.dequantize()), gram);
  const double size = (to_matrix(weight) - to_matrix(found.dequantize())).squaredNorm() *
                      found.damp * to_matrix(gram).diagonal().mean();
  EXPECT_NEAR(*found.loss, wanted, 1e-5 * size);
}

TEST(DeadChannels, AreRoundedAndCounted) {
  const std::vector<int64_t> dead{0, 9, 63};
  const at::Tensor weight = random_weight(30, kChannels, 6), gram = random_gram(kChannels, 7);
  for (const int64_t channel : dead) {
    gram.select(0, channel).zero_();
    gram.select(1, channel).zero_();
  }
  for (const bool static_grid : {true, false}) {
    const GptqOptions options{.grid = {.group_size = 32, .range = Range::kGram},
                              .order = static_grid ? Order::kActivation : Order::kNatural,
                              .static_grid = static_grid};
    const QuantizedLinear found = gptq(weight, gram, options);
    EXPECT_EQ(found.dead_channels, 3);
    EXPECT_EQ(found.damp, options.damp);
    const at::Tensor rounded = quantize(weight, found.grid);
    for (const int64_t channel : dead) {
      EXPECT_TRUE(same_bits(found.codes.select(1, channel), rounded.select(1, channel)));
    }
    EXPECT_GT(to_matrix(found.dequantize()).col(9).cwiseAbs().maxCoeff(), 0.5);
  }
}

TEST(GptqErrors, NameWhatWasGivenAndExpected) {
  const at::Tensor weight = random_weight(4, kChannels, 8), gram = random_gram(kChannels, 9);
  const auto solve = [&](GptqOptions options) {
    return [&, options] { gptq(weight, gram, options); };
  };
  for (const double damp : {0.0, -0.01, HUGE_VAL, std::nan("")}) {
    expect_error<c10::ValueError>(solve({.damp = damp}), {"damp is", "positive fraction"});
  }
  expect_error<c10::ValueError>(solve({.block = 0}), {"block is 0", "positive"});
  expect_error<c10::ValueError>(solve({.grid = {.bits = 9}}), {"bits is 9"});
  expect_error<c10::ValueError>(solve({.static_grid = false}), {"static_grid", "order='natural'"});
  expect_error<c10::ValueError>([] { parse_order("size"); }, {"'size'", "activation", "natural"});

  expect_error<c10::ValueError>([&] { gptq(at::TensorList(), gram); }, {"weights is empty"});
  const std::vector<at::Tensor> uneven{weight, random_weight(4, 32, 8)};
  expect_error<c10::ValueError>([&] { gptq(uneven, gram); }, {"64 and 32 input channels"});
  expect_error<c10::ValueError>([&] { gptq(weight, random_gram(32, 9)); },
                                {"[32, 32]", "[64, 64]"});
  expect_error<c10::TypeError>([&] { gptq(weight, gram.to(at::kDouble)); }, {"gram is Double"});
  expect_error<c10::TypeError>([&] { gptq(weight.to(at::kDouble), gram); }, {"weight is Double"});
  const at::Tensor bad = weight.clone();
  bad[2][5] = std::nan("");
  expect_error<c10::ValueError>([&] { gptq(bad, gram); }, {"weight holds 1 NaN", "[2, 5]"});
}

TEST(GptqErrors, ScaleThatItsTypeCannotHold) {
  const at::Tensor weight = random_weight(4, kChannels, 8) * 1e7, gram = random_gram(kChannels, 9);
  for (const bool static_grid : {true, false}) {
    const GptqOptions options{.grid = {.group_size = 32, .scale_dtype = at::kHalf},
                              .order = Order::kNatural,
                              .static_grid = static_grid};
    expect_error<c10::ValueError>([&] { gptq(weight, gram, options); }, {"does not fit Half"});
  }
}

}  // namespace
}  // namespace mlcalib
