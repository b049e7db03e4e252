// SPDX-License-Identifier: Apache-2.0
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>

#include <limits>

#include "check.hpp"
#include "reference.hpp"

namespace mlcalib {
namespace {

using reference::expect_error;
using reference::random_weight;
using reference::same_bits;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInf = std::numeric_limits<double>::infinity();

TEST(CheckWeight, GivesContiguousFloats) {
  const at::Tensor weight = random_weight(4, 6, 1);
  EXPECT_EQ(check_weight(weight).const_data_ptr(), weight.const_data_ptr());
  const at::Tensor half = weight.to(at::kHalf);
  EXPECT_TRUE(same_bits(check_weight(half), half.to(at::kFloat)));
  const at::Tensor turned = check_weight(weight.t());
  EXPECT_TRUE(turned.is_contiguous());
  EXPECT_TRUE(same_bits(turned, weight.t().contiguous()));
}

TEST(CheckWeight, RefusesShapesAndTypes) {
  const at::Tensor weight = random_weight(4, 6, 1);
  expect_error<c10::ValueError>([&] { check_weight(weight[0]); }, {"[6]", "[out, in]"});
  expect_error<c10::ValueError>([&] { check_weight(weight.narrow(0, 0, 0)); },
                                {"[0, 6]", "at least one row"});
  for (const at::ScalarType type : {at::kDouble, at::kInt, at::kByte, at::kBool}) {
    expect_error<c10::TypeError>([&] { check_weight(weight.to(type)); },
                                 {"weight is", c10::toString(type), "float32", ".float()"});
  }
}

TEST(CheckGram, RefusesShapesAndTypes) {
  const at::Tensor gram = at::zeros({6, 6});
  check_gram(gram, 6);
  expect_error<c10::ValueError>([&] { check_gram(gram, 5); }, {"[6, 6]", "[5, 5]"});
  expect_error<c10::ValueError>([&] { check_gram(gram[0], 6); }, {"[6]", "[6, 6]"});
  expect_error<c10::ValueError>([&] { check_gram(gram.narrow(0, 0, 5), 6); }, {"[5, 6]"});
  for (const at::ScalarType type : {at::kDouble, at::kHalf, at::kBFloat16}) {
    expect_error<c10::TypeError>([&] { check_gram(gram.to(type), 6); },
                                 {"gram is", c10::toString(type), "float32"});
  }
  const at::Tensor bad = gram.clone();
  bad[2][5] = kNan;
  expect_error<c10::ValueError>([&] { check_gram(bad, 6); }, {"gram holds 1 NaN or Inf", "[2, 5]"});
}

struct FiniteCase : reference::Named {
  double first, second;
};

class FiniteTest : public testing::TestWithParam<FiniteCase> {};

TEST_P(FiniteTest, CountsAndNamesTheFirst) {
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16, at::kHalf}) {
    const at::Tensor values = random_weight(5, 70, 2).to(type);
    values[1][64] = GetParam().first;
    values[4][3] = GetParam().second;
    expect_error<c10::ValueError>([&] { check_finite(values, "x"); },
                                  {"x holds 2 NaN or Inf of 350 values", "[1, 64]"});
  }
}

INSTANTIATE_TEST_SUITE_P(Values, FiniteTest,
                         testing::Values(FiniteCase{"Nan", kNan, kNan},
                                         FiniteCase{"Inf", kInf, kInf},
                                         FiniteCase{"MinusInf", -kInf, -kInf},
                                         FiniteCase{"InfsThatCancel", kInf, -kInf}),
                         reference::name_of<FiniteCase>);

// Finite values whose sum is not.
TEST(CheckFinite, AcceptsASumThatOverflows) {
  check_finite(at::full({4, 4}, 3e38, at::kFloat), "x");
  check_finite(at::full({64, 64}, 65504, at::kHalf), "x");
  check_finite(at::zeros({0, 4}), "x");
}

// Meta stands for a second device: kernels take pointers, so the fronts must not let two be mixed.
TEST(CheckDevice, RefusesTwoDevices) {
  const at::Tensor weight = random_weight(4, 6, 1), gram = at::zeros({6, 6});
  check_device(gram, "gram", weight, "weight");
  expect_error<c10::ValueError>([&] { check_device(gram.to(at::kMeta), "gram", weight, "weight"); },
                                {"gram is on meta", "weight is on cpu", ".to()"});
}

TEST(CountDeadChannels, CountsZerosOnTheDiagonal) {
  at::Tensor gram = reference::random_gram(10, 3);
  EXPECT_EQ(count_dead_channels(gram), 0);
  gram[4][4] = 0;
  gram[9][9] = 0;
  EXPECT_EQ(count_dead_channels(gram), 2);
}

}  // namespace
}  // namespace mlcalib
