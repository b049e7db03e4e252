// SPDX-License-Identifier: Apache-2.0
// Every instruction set that this machine has gives the bits of the baseline.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <functional>
#include <mlcalib/runtime.hpp>
#include <mlcalib/version.hpp>
#include <numeric>
#include <random>
#include <set>
#include <tuple>

#include "cpu/kernels/kernels.hpp"
#include "kernel_data.hpp"
#include "reference.hpp"

namespace mlcalib::cpu {
namespace {

using namespace kernel_data;

const KernelTable& baseline() { return **(available_kernels().end() - 1); }

class KernelTest : public testing::TestWithParam<std::tuple<const KernelTable*, Values>> {
 protected:
  const KernelTable& table_ = *std::get<0>(GetParam());
  Values values_ = std::get<1>(GetParam());
};

TEST_P(KernelTest, FitGroup) {
  for (const int64_t columns : {1, 3, 64}) {
    const std::vector<float> weight = draw(values_, columns * kRowTile, 1);
    const std::vector<float> gram = draw_gram(columns);
    std::vector<float> importance(columns), scratch(columns * kRowTile);
    for (int64_t c = 0; c < columns; ++c) importance[c] = gram[c * columns + c];
    GroupPanel group{.weight = weight.data(),
                     .importance = nullptr,
                     .gram = nullptr,
                     .gram_stride = columns,
                     .scratch = scratch.data(),
                     .columns = columns};
    for (const auto& [by_importance, by_block] :
         {std::pair{false, false}, std::pair{true, false}, std::pair{false, true}}) {
      group.importance = by_importance ? importance.data() : nullptr;
      group.gram = by_block ? gram.data() : nullptr;
      for (const bool symmetric : {false, true}) {
        for (const int candidates : {1, 14}) {
          for (const int bits : {2, 3, 4, 8}) {
            const GridShape shape{std::exp2f(static_cast<float>(bits)) - 1, symmetric, candidates};
            std::vector<float> scale(kRowTile), zero(kRowTile), wanted_scale(kRowTile),
                wanted_zero(kRowTile);
            table_.fit_group(group, shape, scale.data(), zero.data());
            baseline().fit_group(group, shape, wanted_scale.data(), wanted_zero.data());
            EXPECT_TRUE(same_bits(scale, wanted_scale))
                << columns << " columns, " << bits << " bits";
            EXPECT_TRUE(same_bits(zero, wanted_zero)) << columns << " columns, " << bits << " bits";
            for (int64_t r = 0; r < kRowTile; ++r) {
              ASSERT_GT(scale[r], 0);
              ASSERT_TRUE(0 <= zero[r] && zero[r] <= shape.largest + symmetric);
            }
          }
        }
      }
    }
  }
}

TEST_P(KernelTest, RoundScaled) {
  for (const int64_t columns : {1, 3, 64}) {
    const std::vector<float> weight = draw(values_, columns * kRowTile, 1);
    std::vector<float> factor = draw(Values::kNormal, columns, 2), inverse(columns);
    for (int64_t c = 0; c < columns; ++c) {
      factor[c] = std::exp(factor[c]);
      inverse[c] = 1 / factor[c];
    }
    const std::vector<float> square = draw(Values::kNormal, columns, 3);
    for (const bool symmetric : {false, true}) {
      for (const int candidates : {1, 14}) {
        const GridShape shape{15, symmetric, candidates};
        const auto round = [&](const KernelTable& table) {
          std::vector<float> scaled(columns * kRowTile), error(columns * kRowTile),
              sum(kRowTile, 0.5F);
          table.awq->round_scaled({.weight = weight.data(),
                                   .factor = factor.data(),
                                   .inverse = inverse.data(),
                                   .importance = nullptr,
                                   .square = square.data(),
                                   .scaled = scaled.data(),
                                   .error = error.data(),
                                   .sum = sum.data(),
                                   .columns = columns,
                                   .error_stride = kRowTile},
                                  shape);
          return std::pair{error, sum};
        };
        const auto [error, sum] = round(table_);
        const auto [wanted_error, wanted_sum] = round(baseline());
        EXPECT_TRUE(same_bits(error, wanted_error)) << columns << " columns";
        EXPECT_TRUE(same_bits(sum, wanted_sum)) << columns << " columns";
      }
    }
  }
}

TEST_P(KernelTest, QuantizeAndDequantizeRun) {
  for (const int64_t n : {1, 7, 16, 63, 64, 129}) {
    const std::vector<float> weight = draw(values_, n, 3);
    for (const float scale : {1.0F, 0.5F, 0.0731F, 1.17549435e-38F, 1e29F}) {
      for (const float zero : {0.0F, 7.0F, 8.0F, 15.0F}) {
        std::vector<uint8_t> codes(n), wanted(n);
        table_.quantize_run(weight.data(), n, scale, zero, kShape, codes.data());
        baseline().quantize_run(weight.data(), n, scale, zero, kShape, wanted.data());
        ASSERT_TRUE(same_bits(codes, wanted)) << n << " weights of scale " << scale;
        ASSERT_LE(*std::max_element(codes.begin(), codes.end()), 15);
        std::vector<float> values(n), wanted_values(n);
        table_.dequantize_run(codes.data(), n, scale, zero, kShape, values.data());
        baseline().dequantize_run(codes.data(), n, scale, zero, kShape, wanted_values.data());
        ASSERT_TRUE(same_bits(values, wanted_values)) << n << " codes of scale " << scale;
      }
    }
  }
}

TEST_P(KernelTest, OtherNumbers) {
  constexpr int64_t kColumns = 33;
  const std::vector<float> weight = draw(values_, kColumns * kRowTile, 1);
  const GroupPanel group{.weight = weight.data(),
                         .importance = nullptr,
                         .gram = nullptr,
                         .gram_stride = 0,
                         .scratch = nullptr,
                         .columns = kColumns};
  const auto n = static_cast<int64_t>(weight.size());
  for (const GridShape& shape : kOtherShapes) {
    std::vector<float> scale(kRowTile), zero(kRowTile), wanted_scale(kRowTile);
    table_.fit_group(group, shape, scale.data(), zero.data());
    baseline().fit_group(group, shape, wanted_scale.data(), zero.data());
    EXPECT_TRUE(same_bits(scale, wanted_scale));
    EXPECT_EQ(zero, std::vector<float>(kRowTile, 0));
    for (const float each : {scale[0], 0.5F, 1e29F}) {
      std::vector<uint8_t> codes(n), wanted(n);
      table_.quantize_run(weight.data(), n, each, 0, shape, codes.data());
      baseline().quantize_run(weight.data(), n, each, 0, shape, wanted.data());
      ASSERT_TRUE(same_bits(codes, wanted));
      std::vector<float> values(n), wanted_values(n);
      table_.dequantize_run(codes.data(), n, each, 0, shape, values.data());
      baseline().dequantize_run(codes.data(), n, each, 0, shape, wanted_values.data());
      ASSERT_TRUE(same_bits(values, wanted_values));
    }
  }
}

TEST_P(KernelTest, SignedScales) {
  constexpr int64_t kColumns = 16;
  const std::vector<float> weight = draw(values_, kColumns * kRowTile, 1);
  const std::vector<float> gram = draw_gram(kColumns);
  std::vector<float> scratch(kColumns * kRowTile);
  GroupPanel group{.weight = weight.data(),
                   .importance = nullptr,
                   .gram = nullptr,
                   .gram_stride = kColumns,
                   .scratch = scratch.data(),
                   .columns = kColumns};
  for (const GridShape& shape : kSignedShapes) {
    for (const float* by : {static_cast<const float*>(nullptr), gram.data()}) {
      group.gram = by;
      std::vector<float> scale(kRowTile), zero(kRowTile), wanted(kRowTile), wanted_zero(kRowTile);
      table_.fit_group(group, shape, scale.data(), zero.data());
      baseline().fit_group(group, shape, wanted.data(), wanted_zero.data());
      EXPECT_TRUE(same_bits(scale, wanted));
      EXPECT_TRUE(same_bits(zero, wanted_zero));
      for (int64_t r = 0; r < kRowTile; ++r) {
        float low = 0, high = 0;
        for (int64_t c = 0; c < kColumns; ++c) {
          low = std::min(low, weight[c * kRowTile + r]);
          high = std::max(high, weight[c * kRowTile + r]);
        }
        EXPECT_EQ(scale[r]<0, high> - low);
        EXPECT_NE(scale[r], 0);
        EXPECT_EQ(zero[r], (shape.largest + 1) / 2);
      }
      std::vector<uint8_t> codes(weight.size()), nearest(weight.size());
      const auto n = static_cast<int64_t>(weight.size());
      table_.quantize_run(weight.data(), n, scale[0], zero[0], shape, codes.data());
      baseline().quantize_run(weight.data(), n, scale[0], zero[0], shape, nearest.data());
      EXPECT_TRUE(same_bits(codes, nearest));
    }
  }
}

TEST_P(KernelTest, GptqBlock) {
  for (const int64_t columns : {1, 5, 32}) {
    const std::vector<float> weight = draw(values_, columns * kRowTile, 4);
    std::vector<float> target = draw(values_, columns * kRowTile, 5);
    for (size_t i = 0; i < target.size(); ++i) target[i] = weight[i] + target[i] / 4;
    std::vector<float> factor = draw(Values::kNormal, columns * columns, 6);
    for (float& each : factor) each /= 8;
    std::vector<float> diagonal = draw(Values::kNormal, columns, 7);
    for (float& each : diagonal) each = std::abs(each);

    // Two groups: scales from the columns' own range, and powers of two that make ties.
    std::vector<float> scale(2 * kRowTile, 0.5F), zero(2 * kRowTile, 8);
    const GroupPanel panel{.weight = weight.data(),
                           .importance = nullptr,
                           .gram = nullptr,
                           .gram_stride = 0,
                           .scratch = nullptr,
                           .columns = columns};
    baseline().fit_group(panel, {15, false, 14}, scale.data(), zero.data());
    std::vector<int64_t> column, group;
    for (int64_t k = 0; k < columns; ++k) {
      column.push_back(columns - 1 - k);
      group.push_back(k % 2);
    }

    struct Output {
      std::vector<float> error;
      std::vector<uint8_t> codes;
      std::vector<double> energy, square;
    };
    const auto solve = [&](const KernelTable& table) {
      Output out{std::vector<float>(columns * kRowTile), std::vector<uint8_t>(columns * kRowTile),
                 std::vector<double>(kRowTile, 0.25), std::vector<double>(kRowTile, 0.5)};
      table.gptq_block({.weight = weight.data(),
                        .column = column.data(),
                        .group = group.data(),
                        .target = target.data(),
                        .factor = factor.data(),
                        .diagonal = diagonal.data(),
                        .scale = scale.data(),
                        .zero = zero.data(),
                        .error = out.error.data(),
                        .codes = out.codes.data(),
                        .energy = out.energy.data(),
                        .square = out.square.data(),
                        .columns = columns,
                        .shape = kShape});
      return out;
    };
    const Output found = solve(table_), wanted = solve(baseline());
    EXPECT_TRUE(same_bits(found.error, wanted.error)) << columns << " columns";
    EXPECT_TRUE(same_bits(found.codes, wanted.codes)) << columns << " columns";
    EXPECT_TRUE(same_bits(found.energy, wanted.energy)) << columns << " columns";
    EXPECT_TRUE(same_bits(found.square, wanted.square)) << columns << " columns";
    EXPECT_LE(*std::max_element(found.codes.begin(), found.codes.end()), 15);
    // Codes stand where the weight's columns do: of column k is what error k says.
    for (int64_t k = 0; k < columns; ++k) {
      for (int64_t r = 0; r < kRowTile; ++r) {
        const float level = static_cast<float>(found.codes[column[k] * kRowTile + r]) -
                            zero[group[k] * kRowTile + r];
        ASSERT_EQ(found.error[k * kRowTile + r],
                  weight[column[k] * kRowTile + r] - scale[group[k] * kRowTile + r] * level);
      }
    }
  }
}

TEST_P(KernelTest, Dot) {
  for (const int64_t n : {0, 1, 7, 8, 9, 100, 1000}) {
    const std::vector<float> a = draw(values_, n, 8), b = draw(values_, n, 9);
    const std::vector<double> found{table_.dot(a.data(), b.data(), n)};
    const std::vector<double> wanted{baseline().dot(a.data(), b.data(), n)};
    EXPECT_TRUE(same_bits(found, wanted)) << n;
    const double expected =
        std::inner_product(a.begin(), a.end(), b.begin(), 0.0, std::plus<>(),
                           [](float x, float y) { return static_cast<double>(x) * y; });
    const double size =
        std::inner_product(a.begin(), a.end(), b.begin(), 0.0, std::plus<>(),
                           [](float x, float y) { return std::abs(static_cast<double>(x) * y); });
    EXPECT_NEAR(found[0], expected, 1e-13 * size) << n;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Isa, KernelTest,
    testing::Combine(testing::ValuesIn(std::vector<const KernelTable*>(available_kernels().begin(),
                                                                       available_kernels().end())),
                     testing::ValuesIn(kAllValues)),
    [](const auto& each) {
      return std::string(std::get<0>(each.param)->name) + "_" +
             kNames[static_cast<size_t>(std::get<1>(each.param))];
    });

// Half to even, on every instruction set: the codes themselves, not only their agreement.
TEST(Kernels, TiesGoToEven) {
  const std::vector<float> weight{-0.5F, 0.5F, 1.5F, 2.5F, 3.5F, -1.5F, -2.5F, 100, -100};
  const std::vector<uint8_t> wanted{8, 8, 10, 10, 12, 6, 6, 15, 0};
  for (const KernelTable* table : available_kernels()) {
    std::vector<uint8_t> codes(weight.size());
    table->quantize_run(weight.data(), static_cast<int64_t>(weight.size()), 1, 8, kShape,
                        codes.data());
    EXPECT_EQ(codes, wanted) << table->name;
  }
}

TEST(Kernels, GenericIsTheLastResort) {
  EXPECT_STREQ(baseline().name, "baseline");
  const std::vector<std::string> names = available_isas();
  EXPECT_EQ(std::set<std::string>(names.begin(), names.end()).size(), names.size());
  EXPECT_NE(std::find(names.begin(), names.end(), isa()), names.end());
}

TEST(Runtime, SaysHowItWasBuilt) {
  const std::map<std::string, std::string> info = build_info();
  for (const char* key : {"version", "torch", "compiler", "build_type", "cuda"}) {
    ASSERT_TRUE(info.contains(key)) << key;
    EXPECT_FALSE(info.at(key).empty()) << key;
  }
  EXPECT_EQ(info.at("version"), MLCALIB_VERSION);
  EXPECT_EQ(info.at("version"), std::to_string(MLCALIB_VERSION_MAJOR) + "." +
                                    std::to_string(MLCALIB_VERSION_MINOR) + "." +
                                    std::to_string(MLCALIB_VERSION_PATCH));
}

TEST(Runtime, NamesTheDevicesThatHaveKernels) {
  std::vector<std::string> wanted{"cpu"};
  if (build_info().at("cuda") != "none") wanted.emplace_back("cuda");
  EXPECT_EQ(device_types(), wanted);
}

}  // namespace
}  // namespace mlcalib::cpu
