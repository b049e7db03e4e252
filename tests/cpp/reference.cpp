// SPDX-License-Identifier: Apache-2.0
#include "reference.hpp"

#include <ATen/ops/empty.h>

#include <Eigen/Cholesky>
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>

namespace mlcalib::reference {
namespace {

Matrix normal(int64_t rows, int64_t columns, uint32_t seed) {
  std::mt19937 engine(seed);
  std::normal_distribution<double> draw;
  return Matrix::NullaryExpr(rows, columns, [&] { return draw(engine); });
}

// scale · (code − zero) of the code nearest to weight.
double nearest(double weight, Level level, double max_code) {
  return level.scale *
         std::clamp(std::nearbyint(weight / level.scale), -level.zero, max_code - level.zero);
}

Level fit(const Row& weight, const Row& importance, const GridSpec& spec) {
  const std::vector<Level> tried = candidates(weight, spec);
  if (spec.range == Range::kMinMax) return tried.front();
  const auto max_code = static_cast<double>(spec.max_code());
  std::vector<double> errors;
  for (const Level& level : tried) {
    errors.push_back(squared_error(weight, importance, level, max_code));
  }
  return tried[std::min_element(errors.begin(), errors.end()) - errors.begin()];
}

}  // namespace

Matrix to_matrix(const at::Tensor& tensor) {
  const at::Tensor values = tensor.to(at::kDouble).contiguous();
  return Eigen::Map<const Matrix>(values.const_data_ptr<double>(), values.size(0), values.size(1));
}

at::Tensor to_tensor(const Matrix& matrix) {
  at::Tensor tensor = at::empty({matrix.rows(), matrix.cols()}, at::kFloat);
  Eigen::Map<Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>>(
      tensor.data_ptr<float>(), matrix.rows(), matrix.cols()) = matrix.cast<float>();
  return tensor;
}

Matrix gram(const Matrix& x) { return x.transpose() * x; }

Matrix activations(int64_t tokens, int64_t channels, uint32_t seed) {
  const int64_t common = std::min<int64_t>(8, channels);
  const Row size = normal(1, channels, seed + 1).array().exp();
  const Matrix x = normal(tokens, channels, seed + 2) +
                   normal(tokens, common, seed + 3) * normal(common, channels, seed + 4) / 2;
  return x.array().rowwise() * size.array();
}

at::Tensor random_weight(int64_t rows, int64_t columns, uint32_t seed) {
  return to_tensor(normal(rows, columns, seed));
}

at::Tensor random_gram(int64_t channels, uint32_t seed) {
  return to_tensor(gram(activations(2 * channels, channels, seed)));
}

double share_equal(const Matrix& a, const Matrix& b) {
  return (a.array() == b.array()).cast<double>().mean();
}

bool same_bits(const at::Tensor& a, const at::Tensor& b) {
  return a.sizes() == b.sizes() && a.scalar_type() == b.scalar_type() &&
         std::memcmp(a.contiguous().const_data_ptr(), b.contiguous().const_data_ptr(),
                     a.nbytes()) == 0;
}

std::vector<Level> candidates(const Row& weight, const GridSpec& spec) {
  double low = std::min(0.0, weight.minCoeff()), high = std::max(0.0, weight.maxCoeff());
  const auto max_code = static_cast<double>(spec.max_code());
  if (spec.symmetric) {
    high = std::max(high, -low);
    low = -high;
  }
  const double smallest = std::numeric_limits<float>::min();
  std::vector<Level> found;
  for (int i = 0; i < 14; ++i) {
    const double shrink = 1 - 0.03 * i;
    const double scale = std::max((high - low) * shrink / max_code, smallest);
    const double zero = spec.symmetric
                            ? (max_code + 1) / 2
                            : std::clamp(std::nearbyint(-low * shrink / scale), 0.0, max_code);
    found.push_back({scale, zero});
  }
  return found;
}

double squared_error(const Row& weight, const Row& importance, Level level, double max_code) {
  double sum = 0;
  for (int64_t c = 0; c < weight.size(); ++c) {
    const double error = weight[c] - nearest(weight[c], level, max_code);
    sum += error * error * importance[c];
  }
  return sum;
}

int64_t group_width(const GridSpec& spec, int64_t channels) {
  return spec.group_size == kWholeRow ? channels : spec.group_size;
}

Solution gptq(const at::Tensor& weight, const at::Tensor& gram, const GptqOptions& options,
              const Grid* grid) {
  Matrix held = to_matrix(weight);
  const Matrix given = to_matrix(gram);
  const int64_t rows = held.rows(), columns = held.cols();
  const int64_t width = group_width(options.grid, columns);
  const auto max_code = static_cast<double>(options.grid.max_code());
  const Row diagonal = given.diagonal().array() + options.damp * given.diagonal().mean();

  std::vector<int64_t> visits(columns);
  std::iota(visits.begin(), visits.end(), 0);
  if (options.order == Order::kActivation) {
    std::stable_sort(visits.begin(), visits.end(),
                     [&](int64_t a, int64_t b) { return diagonal[a] > diagonal[b]; });
  }
  Matrix h = given(visits, visits);
  h.diagonal() = diagonal(visits);
  const Matrix inverse = h.llt().solve(Matrix::Identity(columns, columns));
  const Matrix upper = Eigen::LLT<Matrix>(inverse).matrixU();

  Solution result;
  result.codes = Matrix::Zero(rows, columns);
  result.scale = grid ? to_matrix(grid->scale) : Matrix::Zero(rows, options.grid.groups(columns));
  result.zero = grid ? to_matrix(grid->zero) : Matrix::Zero(rows, options.grid.groups(columns));
  for (int64_t k = 0; k < columns; ++k) {
    const int64_t column = visits[k], group = column / width;
    const int64_t count = std::min(width, columns - column);
    const bool refit = grid == nullptr && column % width == 0;
    for (int64_t r = 0; r < rows; ++r) {
      if (refit) {
        Row importance = Row::Ones(count);
        if (options.grid.range == Range::kGram) importance = diagonal.segment(column, count);
        const Level best = fit(held.row(r).segment(column, count), importance, options.grid);
        result.scale(r, group) = static_cast<float>(best.scale);
        result.zero(r, group) = best.zero;
      }
      const Level level{result.scale(r, group), result.zero(r, group)};
      const double value = nearest(held(r, column), level, max_code);
      result.codes(r, column) = std::nearbyint(value / level.scale) + level.zero;
      const double error = (held(r, column) - value) / upper(k, k);
      for (int64_t j = k + 1; j < columns; ++j) held(r, visits[j]) -= error * upper(k, j);
      held(r, column) = value;
    }
  }
  result.dequantized = held;
  return result;
}

double loss(const at::Tensor& weight, const Matrix& dequantized, const at::Tensor& gram) {
  const Matrix error = to_matrix(weight) - dequantized;
  return (error * to_matrix(gram)).cwiseProduct(error).sum();
}

}  // namespace mlcalib::reference
