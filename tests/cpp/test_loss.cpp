// SPDX-License-Identifier: Apache-2.0
#include <ATen/TensorOperators.h>
#include <ATen/ops/eye.h>
#include <ATen/ops/zeros.h>

#include <mlcalib/rtn.hpp>

#include "reference.hpp"

namespace mlcalib {
namespace {

using reference::expect_error;
using reference::random_gram;
using reference::random_weight;
using reference::same_bits;
using reference::to_matrix;

struct LossCase : reference::Named {
  int64_t rows, columns;
  at::ScalarType dtype;
};

class LossTest : public testing::TestWithParam<LossCase> {};

TEST_P(LossTest, IsTheTraceForEveryGram) {
  const int64_t rows = GetParam().rows, columns = GetParam().columns;
  const at::Tensor weight = random_weight(rows, columns, 1).to(GetParam().dtype);
  const QuantizedLinear quantized = rtn(weight, {.bits = 3, .group_size = 32});
  EXPECT_FALSE(quantized.loss.has_value());
  const std::vector<at::Tensor> grams{random_gram(columns, 2), random_gram(columns, 3) * 1e4,
                                      random_gram(columns, 4).t(), at::eye(columns),
                                      at::zeros({columns, columns})};
  const std::vector<double> found = losses(weight, quantized, grams);
  ASSERT_EQ(found.size(), grams.size());
  for (size_t i = 0; i < grams.size(); ++i) {
    const double wanted = reference::loss(weight, to_matrix(quantized.dequantize()), grams[i]);
    EXPECT_NEAR(found[i], wanted, 1e-5 * wanted) << "gram " << i;
  }
  EXPECT_EQ(found.back(), 0);
}

INSTANTIATE_TEST_SUITE_P(Shapes, LossTest,
                         testing::Values(LossCase{"Square", 64, 64, at::kFloat},
                                         LossCase{"OneByOne", 1, 1, at::kFloat},
                                         LossCase{"ShortLastGroup", 70, 130, at::kFloat},
                                         LossCase{"WideBf16", 3, 449, at::kBFloat16},
                                         LossCase{"TallFp16", 200, 192, at::kHalf}),
                         reference::name_of<LossCase>);

// Of Grams as they are summed, which is not how they are shown; a tile has 96 channels.
TEST(Loss, IsTheSameOfStatistics) {
  for (const int64_t columns : {1, 95, 96, 97, 200}) {
    const at::Tensor change = random_weight(30, columns, 1);
    const std::unique_ptr<Statistic> one = make_statistic("gram", columns);
    const std::unique_ptr<Statistic> other = make_statistic("gram", columns);
    one->update(random_weight(300, columns, 2));
    other->update(random_weight(40, columns, 3).to(at::kBFloat16));
    other->merge(*one, 0.5);
    const std::vector<double> found =
        losses(change, std::vector<const Statistic*>{one.get(), other.get()});
    const std::vector<double> wanted =
        losses(change, {one->state().at("gram"), other->state().at("gram")});
    ASSERT_EQ(found.size(), 2);
    for (size_t i = 0; i < 2; ++i) EXPECT_NEAR(found[i], wanted[i], 1e-12 * wanted[i]) << columns;
  }
}

TEST(Loss, RefusesStatisticsThatAreNoGramOfItsChannels) {
  const at::Tensor change = random_weight(4, 32, 1);
  const auto measured = [&](const char* name, int64_t channels) {
    const std::unique_ptr<Statistic> statistic = make_statistic(name, channels);
    losses(change, std::vector<const Statistic*>{statistic.get()});
  };
  expect_error<c10::ValueError>([&] { measured("range", 32); }, {"range is not a Gram"});
  expect_error<c10::ValueError>([&] { measured("gram", 31); }, {"31 channels, expected 32"});
}

TEST(Loss, OfAWeightOnItsGridIsZero) {
  const at::Tensor weight = random_weight(20, 64, 5);
  const Grid grid = fit_grid(weight, {.group_size = 32});
  const QuantizedLinear quantized{.codes = quantize(weight, grid), .grid = grid, .loss = {}};
  EXPECT_EQ(losses(quantized.dequantize(), quantized, {random_gram(64, 6)}).front(), 0);
  EXPECT_TRUE(losses(weight, quantized, {}).empty());
}

TEST(Rtn, IsTheGridAndItsNearestCodes) {
  const at::Tensor weight = random_weight(70, 100, 7), gram = random_gram(100, 8);
  const GridSpec spec{.bits = 3, .group_size = 32, .range = Range::kGram};
  const QuantizedLinear result = rtn(weight, spec, gram);
  const Grid grid = fit_grid(weight, spec, gram);
  EXPECT_TRUE(same_bits(result.grid.scale, grid.scale));
  EXPECT_TRUE(same_bits(result.grid.zero, grid.zero));
  EXPECT_TRUE(same_bits(result.codes, quantize(weight, grid)));
  ASSERT_TRUE(result.loss.has_value());
  EXPECT_EQ(*result.loss, losses(weight, result, {gram}).front());
  EXPECT_EQ(result.damp, 0);
  EXPECT_EQ(result.dead_channels, 0);
}

TEST(Rtn, CountsDeadChannels) {
  const at::Tensor gram = random_gram(64, 9);
  for (const int64_t dead : {3, 40}) {
    gram.select(0, dead).zero_();
    gram.select(1, dead).zero_();
  }
  const at::Tensor weight = random_weight(5, 64, 10);
  EXPECT_EQ(rtn(weight, {}, gram).dead_channels, 2);
  EXPECT_EQ(rtn(weight, {}).dead_channels, 0);
}

TEST(LossErrors, NameWhatWasGivenAndExpected) {
  const at::Tensor weight = random_weight(4, 32, 11);
  const QuantizedLinear quantized = rtn(weight, {});
  const at::Tensor narrow = random_weight(4, 31, 11);
  expect_error<c10::ValueError>([&] { losses(narrow, quantized, {}); }, {"[4, 31]", "[4, 32]"});
  expect_error<c10::ValueError>([&] { losses(weight, quantized, {random_gram(31, 1)}); },
                                {"gram has shape [31, 31]", "[32, 32]"});
}

}  // namespace
}  // namespace mlcalib
