// SPDX-License-Identifier: Apache-2.0
// The factorisation that GPTQ solves with, against double, and its kernels on every instruction
// set.
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/eye.h>
#include <ATen/ops/full.h>

#include <Eigen/Cholesky>
#include <algorithm>
#include <limits>
#include <vector>

#include "cpu/kernels/kernels.hpp"
#include "kernel_data.hpp"
#include "reference.hpp"
#include "stubs.hpp"

namespace mlcalib {
namespace {

using cpu::FactorKernels;
using cpu::kRowTile;
using reference::Matrix;
using reference::random_gram;
using reference::to_matrix;

// R of columns in the reverse of the order visited, of which the tiles [tile][row][kRowTile] hold
// R_kj / R_kk.
Matrix upper(const Factor& factor, int64_t columns) {
  Matrix result = Matrix::Zero(columns, columns);
  const float* tiles = factor.matrix.const_data_ptr<float>();
  const int64_t rows = factor.matrix.size(1);
  for (int64_t k = 0; k < columns; ++k) {
    for (int64_t j = k; j < columns; ++j) {
      const float unit = tiles[(j / kRowTile * rows + k) * kRowTile + j % kRowTile];
      EXPECT_TRUE(k != j || unit == 1);
      result(k, j) = factor.diagonal[columns - 1 - k].item<double>() * static_cast<double>(unit);
    }
  }
  return result;
}

class FactorTest : public testing::TestWithParam<int64_t> {
 protected:
  const int64_t columns_ = GetParam();
  const at::Tensor gram_ = random_gram(columns_, 1);
  // 7 divides no size here, so this is a permutation; another one than its reverse.
  const at::Tensor visits_ = at::arange(columns_) * 7 % columns_;
};

TEST_P(FactorTest, IsThatOfTheReversedGram) {
  const double added = 0.01 * gram_.diagonal().mean().item<double>();
  const Factor found = factorize_stub(at::kCPU, gram_, visits_, added);
  ASSERT_TRUE(found.matrix.defined());
  const at::Tensor order = visits_.flip(0);
  const at::Tensor damped = gram_ + at::eye(columns_) * added;
  const Matrix wanted_gram = to_matrix(damped.index_select(0, order).index_select(1, order));
  const Matrix wanted = wanted_gram.llt().matrixU();
  const Matrix r = upper(found, columns_);
  const double size = wanted.array().abs().maxCoeff();
  EXPECT_LE((r - wanted).array().abs().maxCoeff(), 2e-5 * size);
  const Matrix back = r.transpose() * r;
  EXPECT_LE((back - wanted_gram).norm(), 2e-6 * wanted_gram.norm());
}

TEST_P(FactorTest, IsUndefinedWhereTheGramIsNotPositiveDefinite) {
  for (const float bad : {-1.0F, 0.0F, std::numeric_limits<float>::quiet_NaN()}) {
    const at::Tensor gram = gram_.clone();
    const int64_t last = columns_ - 1;
    gram[last][last] = bad * gram[last][last].item<float>();
    EXPECT_FALSE(factorize_stub(at::kCPU, gram, visits_, 0).matrix.defined()) << bad;
  }
}

INSTANTIATE_TEST_SUITE_P(Columns, FactorTest, testing::Values(1, 2, 47, 48, 50, 96, 100, 300, 610));

class FactorKernelTest : public testing::TestWithParam<const cpu::KernelTable*> {
 protected:
  static std::vector<float> normal(int64_t count, uint32_t seed) {
    return kernel_data::draw(kernel_data::Values::kNormal, count, seed);
  }
  const FactorKernels& kernels_ = *GetParam()->factor;
};

TEST_P(FactorKernelTest, AddsProducts) {
  ASSERT_EQ(kRowTile % kernels_.rows, 0);
  for (const int64_t steps : {0, 1, 7, 300}) {
    for (const int64_t step : {kernels_.rows, kRowTile}) {
      for (const int64_t count : {int64_t{1}, kernels_.rows}) {
        const std::vector<float> left = normal((steps + 1) * step, 1);
        const std::vector<float> right = normal((steps + 1) * kRowTile, 2);
        std::vector<float> found = normal(kernels_.rows * kRowTile, 3);
        const std::vector<float> before = found;
        kernels_.add_product(left.data(), step, right.data(), steps, -1, count, found.data());
        for (int64_t m = 0; m < kernels_.rows; ++m) {
          for (int64_t c = 0; c < kRowTile; ++c) {
            double wanted = before[m * kRowTile + c];
            for (int64_t t = 0; t < steps && m < count; ++t) {
              wanted -= static_cast<double>(left[t * step + m]) * right[t * kRowTile + c];
            }
            ASSERT_NEAR(found[m * kRowTile + c], wanted, 1e-4) << steps << " steps, row " << m;
          }
        }
      }
    }
  }
}

TEST_P(FactorKernelTest, FactorizesAndSolvesATile) {
  const at::Tensor gram = random_gram(kRowTile, 1);
  const at::Tensor tile = gram.clone();
  ASSERT_TRUE(kernels_.factorize(tile.data_ptr<float>()));
  const Matrix r = to_matrix(tile).triangularView<Eigen::Upper>();
  EXPECT_LE((r.transpose() * r - to_matrix(gram)).norm(), 2e-6 * to_matrix(gram).norm());

  const at::Tensor right = reference::random_weight(kRowTile, kRowTile, 2);
  const at::Tensor solved = right.clone();
  kernels_.solve(tile.const_data_ptr<float>(), solved.data_ptr<float>());
  EXPECT_LE((r.transpose() * to_matrix(solved) - to_matrix(right)).norm(),
            1e-5 * to_matrix(right).norm());
}

INSTANTIATE_TEST_SUITE_P(Isa, FactorKernelTest,
                         testing::ValuesIn(std::vector<const cpu::KernelTable*>(
                             cpu::available_kernels().begin(), cpu::available_kernels().end())),
                         [](const auto& each) { return std::string(each.param->name); });

}  // namespace
}  // namespace mlcalib
