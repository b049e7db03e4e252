// SPDX-License-Identifier: Apache-2.0
#include <ATen/TensorOperators.h>
#include <ATen/ops/diag.h>

#include <mlcalib/gptq.hpp>
#include <mlcalib/rtn.hpp>

#include "reference.hpp"

namespace mlcalib {
namespace {

using reference::Matrix;
using reference::random_gram;
using reference::random_weight;
using reference::same_bits;
using reference::to_matrix;

struct GptqCase : reference::Named {
  int64_t rows, columns;
  GptqOptions options;
};

GptqOptions natural(GridSpec grid, bool static_grid) {
  return {.grid = grid, .order = Order::kNatural, .static_grid = static_grid};
}

class GptqTest : public testing::TestWithParam<GptqCase> {
 protected:
  GptqOptions options_ = GetParam().options;
  at::Tensor weight_ = random_weight(GetParam().rows, GetParam().columns, 1);
  at::Tensor gram_ = random_gram(GetParam().columns, 2);
};

// Static grids are the result's own (test_grid checks them); running grids the reference fits.
TEST_P(GptqTest, AgreesWithTheInverseFormInDouble) {
  const QuantizedLinear found = gptq(weight_, gram_, options_);
  ASSERT_EQ(found.codes.scalar_type(), at::kByte);
  ASSERT_EQ(found.codes.sizes(), weight_.sizes());
  const reference::Solution wanted =
      reference::gptq(weight_, gram_, options_, options_.static_grid ? &found.grid : nullptr);
  EXPECT_GE(reference::share_equal(to_matrix(found.codes), wanted.codes), 0.999);
  const double wanted_loss = reference::loss(weight_, wanted.dequantized, gram_);
  ASSERT_TRUE(found.loss.has_value());
  EXPECT_NEAR(*found.loss, wanted_loss, 2e-3 * wanted_loss);
  if (!options_.static_grid) {
    const Matrix scale = to_matrix(found.grid.scale);
    const auto close = ((scale - wanted.scale).array().abs() <= 1e-4 * wanted.scale.array());
    EXPECT_GE(close.cast<double>().mean(), 0.99);
  }
}

TEST_P(GptqTest, ReportsTheLossOfItsCodes) {
  const QuantizedLinear found = gptq(weight_, gram_, options_);
  const double wanted = reference::loss(weight_, to_matrix(found.dequantize()), gram_);
  EXPECT_NEAR(*found.loss, wanted, 1e-4 * wanted);
  EXPECT_NEAR(losses(weight_, found, {gram_}).front(), wanted, 1e-4 * wanted);
  EXPECT_EQ(found.damp, options_.damp);
  EXPECT_EQ(found.dead_channels, 0);
}

TEST_P(GptqTest, BlocksDoNotChangeCodes) {
  const Matrix codes = to_matrix(gptq(weight_, gram_, options_).codes);
  for (const int64_t block : {1, 48, 100000}) {
    GptqOptions other = options_;
    other.block = block;
    EXPECT_GE(reference::share_equal(codes, to_matrix(gptq(weight_, gram_, other).codes)), 0.999)
        << "block " << block;
  }
}

TEST_P(GptqTest, LosesLessThanRounding) {
  GptqOptions static_options = options_;
  static_options.static_grid = true;
  const QuantizedLinear found = gptq(weight_, gram_, static_options);
  const QuantizedLinear rounded{
      .codes = quantize(weight_, found.grid), .grid = found.grid, .loss = {}};
  EXPECT_LT(*found.loss, losses(weight_, rounded, {gram_}).front());
}

// A power of four leaves every bit of the factor where it was.
TEST_P(GptqTest, ScaleOfTheGramDoesNotMatter) {
  const QuantizedLinear found = gptq(weight_, gram_, options_);
  const QuantizedLinear scaled = gptq(weight_, gram_ * 1024, options_);
  EXPECT_TRUE(same_bits(found.codes, scaled.codes));
  EXPECT_TRUE(same_bits(found.grid.scale, scaled.grid.scale));
  EXPECT_DOUBLE_EQ(*scaled.loss, *found.loss * 1024);
}

INSTANTIATE_TEST_SUITE_P(
    Cases, GptqTest,
    testing::Values(
        GptqCase{"Activation", 64, 192, {.grid = {.group_size = 64, .range = Range::kGram}}},
        GptqCase{"ActivationSymmetric3ShortLastGroup",
                 70,
                 200,
                 {.grid = {.bits = 3, .group_size = 64, .symmetric = true, .range = Range::kGram}}},
        GptqCase{"ActivationWholeRow",
                 65,
                 150,
                 {.grid = {.group_size = kWholeRow, .range = Range::kMse}}},
        GptqCase{"ActivationMinMaxSmallBlock",
                 130,
                 96,
                 {.grid = {.group_size = 32}, .damp = 0.05, .block = 16}},
        GptqCase{"Activation8Bf16",
                 20,
                 160,
                 {.grid = {.bits = 8, .group_size = 32, .scale_dtype = at::kBFloat16}}},
        GptqCase{
            "GroupsOfFive", 100, 43, {.grid = {.bits = 3, .group_size = 5, .range = Range::kMse}}},
        GptqCase{"NaturalStatic", 70, 180,
                 natural({.group_size = 64, .range = Range::kGram}, true)},
        GptqCase{"NaturalStaticWholeRow2", 33, 190,
                 natural({.bits = 2, .group_size = kWholeRow, .range = Range::kMse}, true)},
        GptqCase{"Running", 70, 256, natural({.group_size = 64, .range = Range::kGram}, false)},
        GptqCase{"Running3ShortLastGroup", 90, 200,
                 natural({.bits = 3, .group_size = 48, .range = Range::kMse}, false)},
        GptqCase{"RunningSymmetricGroupsOverBlocks", 65, 320,
                 natural({.group_size = 160, .symmetric = true, .range = Range::kGram}, false)},
        GptqCase{"RunningMinMaxWholeRow", 64, 130, natural({.group_size = kWholeRow}, false)}),
    reference::name_of<GptqCase>);

TEST(Gptq, RunningScalesAreRounded) {
  const GridSpec grid{.group_size = 32, .range = Range::kGram, .scale_dtype = at::kBFloat16};
  const QuantizedLinear found =
      gptq(random_weight(20, 96, 3), random_gram(96, 4), natural(grid, false));
  EXPECT_TRUE(same_bits(found.grid.scale, found.grid.scale.to(at::kBFloat16).to(at::kFloat)));
}

// The grids of static groups are those of the weight: importance is the damped diagonal.
TEST(Gptq, StaticGridsAreTheWeightsOwn) {
  const at::Tensor weight = random_weight(20, 96, 5), gram = random_gram(96, 6);
  for (const Range range : {Range::kMinMax, Range::kMse, Range::kGram}) {
    const GridSpec spec{.group_size = 32, .range = range};
    const Grid found = gptq(weight, gram, {.grid = spec}).grid;
    const at::Tensor damped = gram.clone();
    damped.diagonal().add_(0.01 * gram.diagonal().mean(at::kDouble).item<double>());
    const Grid wanted = fit_grid(weight, spec, damped);
    EXPECT_TRUE(same_bits(found.scale, wanted.scale)) << to_string(range);
    EXPECT_TRUE(same_bits(found.zero, wanted.zero)) << to_string(range);
  }
}

TEST(Gptq, ADiagonalGramRounds) {
  const at::Tensor weight = random_weight(70, 96, 7);
  const at::Tensor gram = at::diag(random_gram(96, 8).diagonal());
  for (const Order order : {Order::kActivation, Order::kNatural}) {
    for (const bool static_grid : {true, false}) {
      if (order == Order::kActivation && !static_grid) continue;
      const GptqOptions options{.grid = {.group_size = 32, .range = Range::kMse},
                                .block = 40,
                                .order = order,
                                .static_grid = static_grid};
      const QuantizedLinear found = gptq(weight, gram, options);
      const QuantizedLinear rounded = rtn(weight, options.grid, gram);
      EXPECT_TRUE(same_bits(found.codes, rounded.codes));
      EXPECT_TRUE(same_bits(found.grid.scale, rounded.grid.scale));
      EXPECT_NEAR(*found.loss, *rounded.loss, 1e-5 * *rounded.loss);
    }
  }
}

class GptqTogetherTest : public testing::TestWithParam<bool> {};

TEST_P(GptqTogetherTest, SeveralWeightsAreEachAlone) {
  const at::Tensor gram = random_gram(160, 9);
  const GptqOptions options = GetParam()
                                  ? GptqOptions{.grid = {.group_size = 64, .range = Range::kGram}}
                                  : natural({.group_size = 64, .range = Range::kGram}, false);
  const std::vector<at::Tensor> weights{random_weight(64, 160, 10), random_weight(5, 160, 11),
                                        random_weight(70, 160, 12).to(at::kBFloat16)};
  const std::vector<QuantizedLinear> together = gptq(weights, gram, options);
  ASSERT_EQ(together.size(), weights.size());
  for (size_t i = 0; i < weights.size(); ++i) {
    const QuantizedLinear alone = gptq(weights[i], gram, options);
    EXPECT_TRUE(same_bits(together[i].codes, alone.codes)) << i;
    EXPECT_TRUE(same_bits(together[i].grid.scale, alone.grid.scale)) << i;
    EXPECT_TRUE(same_bits(together[i].grid.zero, alone.grid.zero)) << i;
    EXPECT_DOUBLE_EQ(*together[i].loss, *alone.loss) << i;
    // Each result owns its memory: one can be dropped while another lives.
    EXPECT_EQ(together[i].codes.storage().nbytes(), together[i].codes.nbytes()) << i;
    EXPECT_EQ(together[i].grid.scale.storage().nbytes(), together[i].grid.scale.nbytes()) << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Grids, GptqTogetherTest, testing::Bool(), [](const auto& each) {
  return std::string(each.param ? "Static" : "Running");
});

TEST(Gptq, LeavesItsArgumentsAlone) {
  const at::Tensor weight = random_weight(20, 64, 13), gram = random_gram(64, 14);
  const at::Tensor weight_before = weight.clone(), gram_before = gram.clone();
  gptq(weight, gram, {.grid = {.group_size = 32, .range = Range::kGram}});
  gptq(weight, gram, natural({.group_size = 32, .range = Range::kGram}, false));
  EXPECT_TRUE(same_bits(weight, weight_before));
  EXPECT_TRUE(same_bits(gram, gram_before));
}

}  // namespace
}  // namespace mlcalib
