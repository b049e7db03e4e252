// SPDX-License-Identifier: Apache-2.0
#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/full.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/zeros.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <mlcalib/statistic.hpp>
#include <random>

#include "reference.hpp"

namespace mlcalib {
namespace {

using reference::expect_error;
using reference::gram;
using reference::Matrix;
using reference::same_bits;
using reference::to_matrix;

std::unique_ptr<Statistic> gram_of(const at::Tensor& x) {
  std::unique_ptr<Statistic> statistic = make_statistic("gram", x.size(-1));
  statistic->update(x);
  return statistic;
}

at::Tensor matrix_of(const Statistic& statistic) { return statistic.state().at("gram"); }

at::Tensor activations(int64_t tokens, int64_t channels, uint32_t seed) {
  return reference::to_tensor(reference::activations(tokens, channels, seed));
}

// Quarters: every sum of their products is a float, so that the Gram is exact.
at::Tensor quarters(int64_t tokens, int64_t channels, uint32_t seed) {
  std::mt19937 engine(seed);
  return reference::to_tensor(Matrix::NullaryExpr(
      tokens, channels, [&] { return (static_cast<double>(engine() % 65) - 32) / 4; }));
}

// Within the rounding of fp32 sums: entry (i, j) against √(G_ii G_jj).
void expect_close(const at::Tensor& found, const Matrix& wanted) {
  const Eigen::VectorXd size = wanted.diagonal().cwiseSqrt();
  const Matrix difference = (to_matrix(found) - wanted).cwiseAbs();
  EXPECT_LE((difference.array() / (size * size.transpose()).array()).maxCoeff(), 1e-5);
}

class GramTest : public testing::TestWithParam<int64_t> {};

TEST_P(GramTest, IsTheSumOfProducts) {
  const int64_t channels = GetParam();
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16, at::kHalf}) {
    const at::Tensor x = activations(600, channels, 1).to(type);
    const std::unique_ptr<Statistic> statistic = gram_of(x);
    expect_close(matrix_of(*statistic), gram(to_matrix(x)));
    EXPECT_TRUE(same_bits(matrix_of(*statistic), matrix_of(*statistic).t()));
    EXPECT_EQ(statistic->tokens(), 600);
  }
}

TEST_P(GramTest, IsExactWhereSumsAre) {
  const int64_t channels = GetParam();
  const at::Tensor x = quarters(301, channels, 2);
  const Matrix wanted = gram(to_matrix(x));
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16, at::kHalf}) {
    EXPECT_EQ(to_matrix(matrix_of(*gram_of(x.to(type)))), wanted) << type;
  }
}

TEST_P(GramTest, PiecesAddUp) {
  const int64_t channels = GetParam();
  const at::Tensor x = activations(96, channels, 3);
  const Matrix values = to_matrix(x);
  for (const int64_t piece : {1, 7, 32, 96}) {
    const std::unique_ptr<Statistic> statistic = make_statistic("gram", channels);
    for (int64_t first = 0; first < 96; first += piece) {
      statistic->update(x.narrow(0, first, std::min<int64_t>(piece, 96 - first)));
    }
    expect_close(matrix_of(*statistic), gram(values));
    EXPECT_EQ(statistic->tokens(), 96);
  }
}

TEST_P(GramTest, MergesWithAWeight) {
  const int64_t channels = GetParam();
  const at::Tensor x = activations(80, channels, 4), y = activations(50, channels, 5);
  const Matrix gx = gram(to_matrix(x));
  const Matrix gy = gram(to_matrix(y));
  const std::unique_ptr<Statistic> a = gram_of(x), b = gram_of(y);
  a->merge(*b, 0.25);
  expect_close(matrix_of(*a), gx + 0.25 * gy);
  EXPECT_EQ(a->tokens(), 80 + 0.25 * 50);
  EXPECT_EQ(b->tokens(), 50);
  expect_close(matrix_of(*b), gy);
  a->merge(*a);
  expect_close(matrix_of(*a), 2 * gx + 0.5 * gy);
  EXPECT_EQ(a->tokens(), 2 * (80 + 0.25 * 50));
}

// Around the tiles of the product and of the copy.
INSTANTIATE_TEST_SUITE_P(Channels, GramTest, testing::Values(1, 47, 48, 49, 65, 144, 193, 400),
                         testing::PrintToStringParamName());

TEST(Gram, TakesTokensOfAnyShapeAndLayout) {
  const at::Tensor x = quarters(24, 40, 6);
  const at::Tensor wanted = matrix_of(*gram_of(x));
  for (const at::Tensor& shaped :
       {x.view({2, 3, 4, 40}), x.t().contiguous().t(), at::cat({x, x}, 1).narrow(1, 0, 40),
        x.view({4, 6, 40}).transpose(0, 1)}) {
    EXPECT_TRUE(same_bits(matrix_of(*gram_of(shaped)), wanted)) << shaped.strides();
    EXPECT_EQ(gram_of(shaped)->tokens(), 24);
  }
  const std::unique_ptr<Statistic> one = gram_of(x[0]);
  EXPECT_EQ(one->tokens(), 1);
  const Matrix row = to_matrix(x.narrow(0, 0, 1));
  EXPECT_EQ(to_matrix(matrix_of(*one)), gram(row));
}

TEST(Gram, NoTokensAddNothing) {
  const std::unique_ptr<Statistic> statistic = gram_of(at::zeros({3, 0, 16}).reshape({0, 16}));
  EXPECT_EQ(statistic->tokens(), 0);
  EXPECT_EQ(to_matrix(matrix_of(*statistic)), Matrix(Matrix::Zero(16, 16)));
}

TEST(Gram, NanOrInfAddsNothing) {
  const std::unique_ptr<Statistic> statistic = gram_of(activations(20, 16, 7));
  const at::Tensor before = matrix_of(*statistic);
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16, at::kHalf}) {
    for (const double value : {std::nan(""), HUGE_VAL, -HUGE_VAL}) {
      const at::Tensor x = activations(5, 16, 8).to(type);
      x[3][9] = value;
      expect_error<c10::ValueError>([&] { statistic->update(x); }, {"x holds", "[3, 9]"});
      EXPECT_TRUE(same_bits(matrix_of(*statistic), before));
      EXPECT_EQ(statistic->tokens(), 20);
    }
  }
}

TEST(Gram, StateIsACopyThatLoads) {
  const std::unique_ptr<Statistic> statistic = gram_of(activations(20, 300, 9));
  const TensorMap state = statistic->state();
  ASSERT_EQ(state.size(), 2U);
  EXPECT_EQ(state.at("tokens").scalar_type(), at::kDouble);
  EXPECT_EQ(state.at("tokens").dim(), 0);
  EXPECT_EQ(state.at("tokens").item<double>(), 20);

  const std::unique_ptr<Statistic> loaded = gram_of(activations(3, 300, 10));
  loaded->load(state);
  EXPECT_TRUE(same_bits(matrix_of(*loaded), state.at("gram")));
  EXPECT_EQ(loaded->tokens(), 20);
  const at::Tensor before = state.at("gram").clone();
  statistic->update(activations(4, 300, 11));
  loaded->update(activations(4, 300, 12));
  EXPECT_TRUE(same_bits(state.at("gram"), before));
}

// One triangle is accumulated; a state in another layout must not swap it.
TEST(Gram, LoadsAnyLayout) {
  const at::Tensor x = activations(20, 300, 13), more = activations(20, 300, 14);
  const std::unique_ptr<Statistic> wanted = gram_of(x);
  TensorMap state = wanted->state();
  state["gram"] = state["gram"].t();
  ASSERT_FALSE(state["gram"].is_contiguous());
  const std::unique_ptr<Statistic> loaded = make_statistic("gram", 300);
  loaded->load(state);
  loaded->update(more);
  wanted->update(more);
  EXPECT_TRUE(same_bits(matrix_of(*loaded), matrix_of(*wanted)));
}

TEST(Gram, LivesInsideAndOutsideOfInferenceMode) {
  const at::Tensor x = quarters(8, 16, 15);
  std::unique_ptr<Statistic> statistic, other;
  {
    const c10::InferenceMode inference;
    statistic = gram_of(x.clone());
    other = make_statistic("gram", 16);
    other->load(statistic->state());
  }
  statistic->update(x);
  statistic->merge(*other);
  other->update(x);
  EXPECT_EQ(statistic->tokens(), 24);
  EXPECT_EQ(to_matrix(matrix_of(*statistic)), Matrix(3 * gram(to_matrix(x))));
  {
    const c10::InferenceMode inference;
    statistic->merge(*other);
  }
  EXPECT_EQ(statistic->tokens(), 40);
}

TEST(StatisticErrors, LoadRefusesAForeignState) {
  const std::unique_ptr<Statistic> statistic = gram_of(activations(20, 4, 16));
  const at::Tensor before = matrix_of(*statistic);
  const at::Tensor gram = at::zeros({4, 4}), tokens = at::scalar_tensor(1.0, at::kDouble);
  const auto load = [&](TensorMap state) { return [&, state] { statistic->load(state); }; };
  expect_error<c10::ValueError>(load({{"tokens", tokens}}), {"lacks the tensor 'gram'"});
  expect_error<c10::ValueError>(load({{"gram", gram}}), {"needs 'tokens'"});
  expect_error<c10::ValueError>(load({{"gram", gram}, {"tokens", at::zeros({2})}}),
                                {"needs 'tokens', one number"});
  expect_error<c10::ValueError>(load({{"gram", gram}, {"tokens", tokens}, {"mean", gram}}),
                                {"unknown tensor 'mean'"});
  expect_error<c10::ValueError>(load({{"gram", at::zeros({4, 5})}, {"tokens", tokens}}),
                                {"'gram'", "[4, 5]", "expected Float [4, 4]"});
  expect_error<c10::ValueError>(load({{"gram", gram.to(at::kDouble)}, {"tokens", tokens}}),
                                {"'gram'", "Double [4, 4]", "expected Float [4, 4]"});
  EXPECT_TRUE(same_bits(matrix_of(*statistic), before));
  EXPECT_EQ(statistic->tokens(), 20);
}

TEST(StatisticErrors, UpdateAndMergeNameWhatWasGiven) {
  const std::unique_ptr<Statistic> statistic = make_statistic("gram", 4);
  expect_error<c10::ValueError>(
      [&] {
        statistic->update(at::zeros({3, 5}));
      },
      {"x has shape [3, 5]", "[..., 4]"});
  expect_error<c10::ValueError>([&] { statistic->update(at::scalar_tensor(1.0)); }, {"[..., 4]"});
  expect_error<c10::TypeError>(
      [&] {
        statistic->update(at::zeros({3, 4}, at::kDouble));
      },
      {"x is Double", "bfloat16"});
  const std::unique_ptr<Statistic> wide = make_statistic("gram", 5);
  expect_error<c10::ValueError>([&] { statistic->merge(*wide); }, {"5 channels", "4 channels"});
  expect_error<c10::ValueError>([&] { statistic->merge(*statistic, std::nan("")); },
                                {"weight is nan"});
  EXPECT_EQ(statistic->tokens(), 0);
}

TEST(Registry, MakesWhatItNames) {
  const std::vector<std::string> names = statistic_names();
  EXPECT_NE(std::find(names.begin(), names.end(), "gram"), names.end());
  for (const std::string& name : names) {
    const std::unique_ptr<Statistic> statistic = make_statistic(name, 12);
    EXPECT_EQ(statistic->name(), name);
    EXPECT_EQ(statistic->channels(), 12);
    EXPECT_EQ(statistic->tokens(), 0);
  }
  expect_error<c10::ValueError>([] { make_statistic("mean", 4); },
                                {"'mean'", "Available: ", "gram"});
  for (const int64_t channels : {0, -3}) {
    expect_error<c10::ValueError>([&] { make_statistic("gram", channels); }, {"positive"});
  }
}

}  // namespace
}  // namespace mlcalib
