// SPDX-License-Identifier: Apache-2.0
#include <ATen/TensorOperators.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <mlcalib/grid.hpp>

#include "reference.hpp"

namespace mlcalib {
namespace {

using reference::expect_error;
using reference::Level;
using reference::Matrix;
using reference::Row;
using reference::same_bits;
using reference::to_matrix;

struct GridCase : reference::Named {
  int64_t rows, columns;
  GridSpec spec;
};

class GridTest : public testing::TestWithParam<GridCase> {
 protected:
  // Calls check(row, first column, columns, group) for every group of every row.
  template <class Check>
  void for_each_group(const Check& check) const {
    const int64_t width = reference::group_width(spec_, columns_);
    for (int64_t r = 0; r < rows_; ++r) {
      for (int64_t g = 0; g < spec_.groups(columns_); ++g) {
        check(r, g * width, std::min(width, columns_ - g * width), g);
      }
    }
  }

  int64_t rows_ = GetParam().rows, columns_ = GetParam().columns;
  GridSpec spec_ = GetParam().spec;
  double max_code_ = static_cast<double>(spec_.max_code());
  at::Tensor weight_ = reference::random_weight(rows_, columns_, 1);
  at::Tensor gram_ = reference::random_gram(columns_, 2);
  Matrix w_ = to_matrix(weight_);
};

TEST_P(GridTest, FitsTheBestOfTheCandidates) {
  const Grid grid = fit_grid(weight_, spec_, gram_);
  ASSERT_EQ(grid.scale.sizes(), at::IntArrayRef({rows_, spec_.groups(columns_)}));
  ASSERT_EQ(grid.scale.scalar_type(), at::kFloat);
  ASSERT_EQ(grid.zero.scalar_type(), at::kByte);
  const Matrix scale = to_matrix(grid.scale), zero = to_matrix(grid.zero);
  const Row diagonal = to_matrix(gram_).diagonal();
  // Rounding of a scale to its type.
  const double slack = spec_.scale_dtype == at::kFloat ? 1e-6 : 1.0 / 256;
  for_each_group([&](int64_t r, int64_t first, int64_t count, int64_t g) {
    const Row group = w_.row(r).segment(first, count);
    const Row importance =
        spec_.range == Range::kGram ? Row(diagonal.segment(first, count)) : Row(Row::Ones(count));
    const std::vector<Level> tried = reference::candidates(group, spec_);
    double chosen = std::numeric_limits<double>::infinity(), best = chosen;
    for (const Level& level : tried) {
      const double error = reference::squared_error(group, importance, level, max_code_);
      best = std::min(best, error);
      const bool same =
          level.zero == zero(r, g) && std::abs(level.scale - scale(r, g)) <= slack * level.scale;
      if (same) chosen = std::min(chosen, error);
    }
    ASSERT_TRUE(std::isfinite(chosen)) << "row " << r << " group " << g << ": not a candidate";
    if (spec_.range == Range::kMinMax) {
      EXPECT_EQ(zero(r, g), tried.front().zero);
      EXPECT_NEAR(scale(r, g), tried.front().scale, slack * scale(r, g));
    } else {
      EXPECT_LE(chosen, best * (1 + 1e-4)) << "row " << r << " group " << g;
    }
  });
}

TEST_P(GridTest, IsWhatACheckpointCanHold) {
  const Grid grid = fit_grid(weight_, spec_, gram_);
  EXPECT_TRUE(same_bits(grid.scale, grid.scale.to(spec_.scale_dtype).to(at::kFloat)));
  EXPECT_GT(to_matrix(grid.scale).minCoeff(), 0);
  const Matrix zero = to_matrix(grid.zero);
  EXPECT_LE(zero.maxCoeff(), max_code_);
  if (spec_.symmetric) {
    EXPECT_TRUE((zero.array() == std::exp2(spec_.bits - 1)).all());
  }

  GridSpec exact = spec_;
  exact.scale_dtype = at::kFloat;
  const Grid unrounded = fit_grid(weight_, exact, gram_);
  EXPECT_TRUE(same_bits(grid.scale, unrounded.scale.to(spec_.scale_dtype).to(at::kFloat)));
}

TEST_P(GridTest, QuantizesToTheNearestLevel) {
  const Grid grid = fit_grid(weight_, spec_, gram_);
  const at::Tensor codes = quantize(weight_, grid);
  ASSERT_EQ(codes.scalar_type(), at::kByte);
  ASSERT_EQ(codes.sizes(), weight_.sizes());
  const Matrix scale = to_matrix(grid.scale), zero = to_matrix(grid.zero), code = to_matrix(codes);
  EXPECT_LE(code.maxCoeff(), max_code_);
  for_each_group([&](int64_t r, int64_t first, int64_t count, int64_t g) {
    for (int64_t c = first; c < first + count; ++c) {
      const double distance = std::abs(w_(r, c) - scale(r, g) * (code(r, c) - zero(r, g)));
      double least = distance;
      for (int level = 0; level <= max_code_; ++level) {
        least = std::min(least, std::abs(w_(r, c) - scale(r, g) * (level - zero(r, g))));
      }
      EXPECT_LE(distance, least + 1e-6 * scale(r, g)) << "row " << r << " column " << c;
    }
  });
}

TEST_P(GridTest, DequantizesToItsLevels) {
  const Grid grid = fit_grid(weight_, spec_, gram_);
  const at::Tensor codes = quantize(weight_, grid);
  const at::Tensor dequantized = dequantize(codes, grid);
  ASSERT_EQ(dequantized.scalar_type(), at::kFloat);
  const Matrix scale = to_matrix(grid.scale), zero = to_matrix(grid.zero), code = to_matrix(codes);
  const Matrix values = to_matrix(dequantized);
  for_each_group([&](int64_t r, int64_t first, int64_t count, int64_t g) {
    for (int64_t c = first; c < first + count; ++c) {
      EXPECT_EQ(values(r, c), static_cast<float>(scale(r, g) * (code(r, c) - zero(r, g))));
    }
  });
  EXPECT_TRUE(same_bits(quantize(dequantized, grid), codes));
}

INSTANTIATE_TEST_SUITE_P(
    Specs, GridTest,
    testing::Values(
        GridCase{"MinMax4", 70, 128, {.bits = 4, .group_size = 64}},
        GridCase{"MinMaxSymmetric4", 5, 96, {.bits = 4, .group_size = 32, .symmetric = true}},
        GridCase{
            "Mse2ShortLastGroup", 67, 100, {.bits = 2, .group_size = 32, .range = Range::kMse}},
        GridCase{"MseSymmetric3WholeRow",
                 130,
                 77,
                 {.bits = 3, .group_size = kWholeRow, .symmetric = true, .range = Range::kMse}},
        GridCase{"Gram3", 64, 192, {.bits = 3, .group_size = 64, .range = Range::kGram}},
        GridCase{
            "Gram4Bf16",
            70,
            130,
            {.bits = 4, .group_size = 64, .range = Range::kGram, .scale_dtype = at::kBFloat16}},
        GridCase{"GramSymmetric4Fp16",
                 33,
                 64,
                 {.bits = 4,
                  .group_size = 16,
                  .symmetric = true,
                  .range = Range::kGram,
                  .scale_dtype = at::kHalf}},
        GridCase{"Mse8", 9, 64, {.bits = 8, .group_size = 64, .range = Range::kMse}},
        GridCase{"GroupsOfOne", 3, 17, {.bits = 4, .group_size = 1, .range = Range::kMse}},
        GridCase{"GroupBeyondTheRow", 3, 17, {.bits = 5, .group_size = 64, .range = Range::kMse}}),
    reference::name_of<GridCase>);

TEST(Grid, WholeRowIsOneGroupOfTheRow) {
  const at::Tensor weight = reference::random_weight(9, 80, 3);
  const Grid whole = fit_grid(weight, {.group_size = kWholeRow, .range = Range::kMse});
  const Grid same = fit_grid(weight, {.group_size = 80, .range = Range::kMse});
  EXPECT_TRUE(same_bits(whole.scale, same.scale));
  EXPECT_TRUE(same_bits(whole.zero, same.zero));
}

TEST(Grid, CountsGroups) {
  EXPECT_EQ((GridSpec{.group_size = 64}.groups(128)), 2);
  EXPECT_EQ((GridSpec{.group_size = 64}.groups(129)), 3);
  EXPECT_EQ((GridSpec{.group_size = 64}.groups(1)), 1);
  EXPECT_EQ((GridSpec{.group_size = kWholeRow}.groups(129)), 1);
}

// A group of one sign keeps zero in its range; a group of zeros stays zero.
TEST(Grid, OneSidedAndEmptyGroups) {
  for (const double value : {0.5, -0.5, 0.0}) {
    const at::Tensor weight = at::full({3, 32}, value, at::kFloat);
    for (const Range range : {Range::kMinMax, Range::kMse}) {
      const Grid grid = fit_grid(weight, {.group_size = 32, .range = range});
      EXPECT_TRUE(
          to_matrix(dequantize(quantize(weight, grid), grid)).isApprox(to_matrix(weight), 1e-6))
          << value;
    }
  }
}

TEST(Grid, ScaleTooSmallForItsTypeIsItsSmallest) {
  const at::Tensor weight = at::full({2, 8}, 1e-9, at::kFloat);
  const Grid grid = fit_grid(weight, {.group_size = 8, .scale_dtype = at::kHalf});
  EXPECT_TRUE((to_matrix(grid.scale).array() == std::exp2(-24)).all());
  EXPECT_EQ(to_matrix(dequantize(quantize(weight, grid), grid)).maxCoeff(), 0);
}

class GridDtypeTest : public testing::TestWithParam<at::ScalarType> {};

TEST_P(GridDtypeTest, WeightsOfAnyTypeAndLayout) {
  const at::Tensor half = reference::random_weight(40, 96, 4).to(GetParam());
  const at::Tensor strided = half.t().contiguous().t();
  const GridSpec spec{.group_size = 32, .range = Range::kMse};
  const Grid expected = fit_grid(half.to(at::kFloat), spec);
  for (const at::Tensor& weight : {half, strided}) {
    const Grid grid = fit_grid(weight, spec);
    EXPECT_TRUE(same_bits(grid.scale, expected.scale));
    EXPECT_TRUE(same_bits(grid.zero, expected.zero));
    EXPECT_TRUE(same_bits(quantize(weight, grid), quantize(half.to(at::kFloat), expected)));
  }
  const at::Tensor codes = quantize(half, expected);
  const Grid transposed{expected.scale.t().contiguous().t(), expected.zero.t().contiguous().t(),
                        spec};
  EXPECT_TRUE(
      same_bits(dequantize(codes.t().contiguous().t(), transposed), dequantize(codes, expected)));
}

INSTANTIATE_TEST_SUITE_P(Dtypes, GridDtypeTest,
                         testing::Values(at::kFloat, at::kBFloat16, at::kHalf),
                         [](const auto& each) { return std::string(c10::toString(each.param)); });

TEST(GridErrors, NameWhatWasGivenAndExpected) {
  const at::Tensor weight = reference::random_weight(4, 32, 5);
  const auto fit = [&](GridSpec spec) { return [&weight, spec] { fit_grid(weight, spec); }; };
  expect_error<c10::ValueError>(fit({.bits = 1}), {"bits is 1", "2 to 8"});
  expect_error<c10::ValueError>(fit({.bits = 9}), {"bits is 9", "2 to 8"});
  expect_error<c10::ValueError>(fit({.group_size = 0}), {"group_size is 0", "-1"});
  expect_error<c10::ValueError>(fit({.group_size = -2}), {"group_size is -2"});
  expect_error<c10::ValueError>(fit({.scale_dtype = at::kDouble}), {"scale_dtype", "bfloat16"});
  expect_error<c10::ValueError>(fit({.range = Range::kGram}), {"range='gram'", "gram="});
  expect_error<c10::ValueError>([] { parse_range("best"); }, {"'best'", "minmax", "mse", "gram"});

  const Grid grid = fit_grid(weight, {.group_size = 16});
  const at::Tensor other = reference::random_weight(5, 32, 5);
  expect_error<c10::ValueError>([&] { quantize(other, grid); }, {"[5, 32]", "[4, 2]", "16"});
  const at::Tensor codes = at::zeros({4, 48}, at::kByte);
  expect_error<c10::ValueError>([&] { dequantize(codes, grid); }, {"codes", "[4, 48]", "[4, 2]"});
  expect_error<c10::TypeError>([&] { dequantize(weight, grid); }, {"codes are Float", "uint8"});
  const Grid wrong{grid.scale, grid.zero.to(at::kFloat), grid.spec};
  expect_error<c10::TypeError>([&] { quantize(weight, wrong); }, {"zero Float", "uint8"});
}

TEST(GridErrors, ScaleThatItsTypeCannotHold) {
  const at::Tensor weight = at::full({2, 8}, 1e7, at::kFloat);
  expect_error<c10::ValueError>(
      [&] { fit_grid(weight, {.group_size = 8, .scale_dtype = at::kHalf}); },
      {"does not fit", "Half", "torch.bfloat16"});
}

}  // namespace
}  // namespace mlcalib
