// SPDX-License-Identifier: Apache-2.0
// Float64 references, written the textbook way, and what the tests share.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include <Eigen/Core>
#include <functional>
#include <initializer_list>
#include <mlcalib/gptq.hpp>
#include <ostream>
#include <string>
#include <typeinfo>
#include <vector>

namespace mlcalib::reference {

using Matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using Row = Eigen::RowVectorXd;

// ---- Tensors and matrices ----

Matrix to_matrix(const at::Tensor& tensor);
at::Tensor to_tensor(const Matrix& matrix);  ///< float32

/// xᵀx
Matrix gram(const Matrix& x);

/// Activations as those of a language model: correlated, and a few channels far larger than others.
Matrix activations(int64_t tokens, int64_t channels, uint32_t seed);

at::Tensor random_weight(int64_t rows, int64_t columns, uint32_t seed);

/// Of activations, twice as many tokens as channels.
at::Tensor random_gram(int64_t channels, uint32_t seed);

double share_equal(const Matrix& a, const Matrix& b);
bool same_bits(const at::Tensor& a, const at::Tensor& b);

// ---- Grids ----

struct Level {
  double scale = 0, zero = 0;
};

/// The 14 ranges that a search tries for a group; the first is the group's extremes.
std::vector<Level> candidates(const Row& weight, const GridSpec& spec);

/// What the searches minimise.
double squared_error(const Row& weight, const Row& importance, Level level, double max_code);

/// Columns of a group that is not the last.
int64_t group_width(const GridSpec& spec, int64_t channels);

// ---- GPTQ ----

struct Solution {
  Matrix codes, dequantized, scale, zero;
};

/// GPTQ in the classic inverse form (arXiv 2210.17323, algorithm 1), column by column. Static grids
/// are given; running grids (grid == nullptr) are fitted here.
Solution gptq(const at::Tensor& weight, const at::Tensor& gram, const GptqOptions& options,
              const Grid* grid);

/// tr(D G Dᵀ), D = weight − dequantized.
double loss(const at::Tensor& weight, const Matrix& dequantized, const at::Tensor& gram);

// ---- Cases and expectations ----

/// The base of a test's parameters: what gtest shows of them.
struct Named {
  const char* name;
  friend std::ostream& operator<<(std::ostream& out, const Named& named) {
    return out << named.name;
  }
};

template <class Case>
std::string name_of(const testing::TestParamInfo<Case>& each) {
  return each.param.name;
}

/// run throws exactly Error, with a message that holds every one of `parts`.
template <class Error>
void expect_error(const std::function<void()>& run, std::initializer_list<std::string> parts) {
  try {
    run();
  } catch (const Error& error) {
    const std::string message = error.what_without_backtrace();
    EXPECT_EQ(typeid(error), typeid(Error)) << message;
    for (const std::string& part : parts) {
      EXPECT_NE(message.find(part), std::string::npos) << message << "\n  lacks: " << part;
    }
    return;
  } catch (const std::exception& error) {
    ADD_FAILURE() << "another error was thrown: " << error.what();
    return;
  }
  ADD_FAILURE() << "nothing was thrown";
}

}  // namespace mlcalib::reference
