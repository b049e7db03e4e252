// SPDX-License-Identifier: Apache-2.0
// Coordinate descent on codes: every instruction set decides as the baseline does, and as a plain
// loop over rows and columns would.
#include <cmath>

#include "cpu/kernels/kernels.hpp"
#include "kernel_data.hpp"
#include "reference.hpp"

namespace mlcalib::cpu {
namespace {

using namespace kernel_data;

const KernelTable& simplest() { return **(available_kernels().end() - 1); }

/// One block of codes and what they stand on; two groups.
struct DescentTile {
  DescentTile(int64_t count, Values values) : columns(count), gram(draw_gram(count)) {
    const std::vector<float> rows = draw_gram(kRowTile);
    output.assign(rows.begin(), rows.end());
    for (int64_t i = 0; i < kRowTile; ++i) diagonal.push_back(output[i * kRowTile + i]);
    error = draw(values, columns * kRowTile, 3);
    for (int64_t k = 0; k < columns; ++k) group.push_back(k % 2);
    scale = draw(Values::kNormal, 2 * kRowTile, 4);
    for (float& each : scale) each = std::abs(each) + 0.25F;
    for (size_t i = 0; i < error.size(); ++i) codes.push_back(static_cast<uint8_t>(i * 7 % 16));
    felt = std::vector<float>(columns * kRowTile);
    gradient = felt;
    for (int64_t k = 0; k < columns; ++k) {
      for (int64_t r = 0; r < kRowTile; ++r) {
        for (int64_t i = 0; i < kRowTile; ++i) {
          felt[k * kRowTile + r] += output[i * kRowTile + r] * error[k * kRowTile + i];
        }
      }
    }
    for (int64_t k = 0; k < columns; ++k) {
      for (int64_t r = 0; r < kRowTile; ++r) {
        for (int64_t j = 0; j < columns; ++j) {
          gradient[k * kRowTile + r] += gram[k * columns + j] * felt[j * kRowTile + r];
        }
      }
    }
    change = std::vector<float>(felt.size(), 99);
  }

  void descend(const KernelTable& table) {
    table.descent->block({.gram = gram.data(),
                          .output = output.data(),
                          .diagonal = diagonal.data(),
                          .group = group.data(),
                          .scale = scale.data(),
                          .zero = zero.data(),
                          .gradient = gradient.data(),
                          .felt = felt.data(),
                          .change = change.data(),
                          .codes = codes.data(),
                          .gram_stride = columns,
                          .columns = columns,
                          .shape = {15, false, 14}});
  }

  float level(int64_t k, int64_t r, float code) const {
    const int64_t at = group[k] * kRowTile + r;
    return scale[at] * (code - zero[at]);
  }

  double loss() const {  // tr(O D H Dᵀ)
    double sum = 0;
    for (int64_t k = 0; k < columns; ++k) {
      for (int64_t j = 0; j < columns; ++j) {
        for (int64_t r = 0; r < kRowTile; ++r) {
          for (int64_t i = 0; i < kRowTile; ++i) {
            sum += static_cast<double>(output[r * kRowTile + i]) * error[i + k * kRowTile] *
                   static_cast<double>(gram[k * columns + j]) * error[r + j * kRowTile];
          }
        }
      }
    }
    return sum;
  }

  int64_t columns;
  std::vector<float> gram, output, diagonal, error, scale, zero = std::vector<float>(96, 8);
  std::vector<float> felt, gradient, change;
  std::vector<int64_t> group;
  std::vector<uint8_t> codes;
};

TEST(Descent, InstructionSetsAgree) {
  for (const KernelTable* table : available_kernels()) {
    for (const int64_t columns : {1, 7, 40}) {
      DescentTile found(columns, Values::kNormal), wanted(columns, Values::kNormal);
      found.descend(*table);
      wanted.descend(simplest());
      EXPECT_TRUE(same_bits(found.codes, wanted.codes)) << table->name << ", " << columns;
      EXPECT_TRUE(same_bits(found.change, wanted.change)) << table->name << ", " << columns;
      EXPECT_TRUE(same_bits(found.felt, wanted.felt)) << table->name << ", " << columns;
    }
  }
}

TEST(Descent, ChangesAreThoseOfCodesAndTheLossFalls) {
  DescentTile problem(40, Values::kNormal);
  const std::vector<uint8_t> before = problem.codes;
  const double loss = problem.loss();
  problem.descend(kernels());
  int64_t changed = 0;
  for (int64_t k = 0; k < problem.columns; ++k) {
    for (int64_t r = 0; r < kRowTile; ++r) {
      const size_t at = k * kRowTile + r;
      const float change = problem.level(k, r, problem.codes[at]) - problem.level(k, r, before[at]);
      ASSERT_EQ(problem.change[at], change);
      problem.error[at] += change;
      changed += change != 0;
    }
  }
  EXPECT_GT(changed, 0);
  EXPECT_LT(problem.loss(), loss);
}

}  // namespace
}  // namespace mlcalib::cpu
