// SPDX-License-Identifier: Apache-2.0
// The functions that the CUDA kernels are made of, each against the CPU kernels, bit for bit.
#include <ATen/ops/tensor.h>

#include <algorithm>
#include <limits>
#include <tuple>
#include <utility>

#include "cpu/activations.hpp"
#include "cpu/kernels/kernels.hpp"
#include "cuda/kernels/arithmetic.hpp"
#include "kernel_data.hpp"
#include "reference.hpp"
#include "stubs.hpp"

namespace mlcalib::cuda {
namespace {

using namespace kernel_data;
using cpu::kRowTile;

class CudaArithmetic : public testing::TestWithParam<std::tuple<const cpu::KernelTable*, Values>> {
 protected:
  std::vector<float> weights(int64_t count, uint32_t seed) const {
    return draw(std::get<1>(GetParam()), count, seed);
  }
  const cpu::KernelTable& cpu_ = *std::get<0>(GetParam());
};

TEST_P(CudaArithmetic, NearestCodeAndValueOf) {
  const std::vector<float> weight = weights(129, 3);
  const auto n = static_cast<int64_t>(weight.size());
  for (const float scale : {1.0F, 0.5F, 0.0731F, 1.17549435e-38F, 1e29F}) {
    for (const float zero : {0.0F, 7.0F, 8.0F, 15.0F}) {
      std::vector<uint8_t> codes(n), wanted(n);
      std::vector<float> values(n), wanted_values(n);
      cpu_.quantize_run(weight.data(), n, scale, zero, kShape, wanted.data());
      cpu_.dequantize_run(wanted.data(), n, scale, zero, kShape, wanted_values.data());
      for (int64_t i = 0; i < n; ++i) {
        codes[i] = nearest_code(weight[i], {scale, zero}, Integers<float>{15});
        values[i] = value_of(static_cast<float>(codes[i]), Level{scale, zero}, Integers<float>{15});
      }
      EXPECT_TRUE(same_bits(codes, wanted)) << scale;
      EXPECT_TRUE(same_bits(values, wanted_values)) << scale;
    }
  }
}

TEST_P(CudaArithmetic, NearestCodeAndValueOfOtherNumbers) {
  const std::vector<float> weight = weights(129, 3);
  const auto n = static_cast<int64_t>(weight.size());
  for (const GridShape& shape : kOtherShapes) {
    with_numbers<float>(shape, [&](auto numbers) {
      for (const float scale : {1.0F, 0.5F, 0.0731F, 1.17549435e-38F, 1e29F}) {
        std::vector<uint8_t> codes(n), wanted(n);
        std::vector<float> values(n), wanted_values(n);
        cpu_.quantize_run(weight.data(), n, scale, 0, shape, wanted.data());
        cpu_.dequantize_run(wanted.data(), n, scale, 0, shape, wanted_values.data());
        for (int64_t i = 0; i < n; ++i) {
          codes[i] = nearest_code(weight[i], {scale, 0}, numbers);
          values[i] = value_of(static_cast<float>(codes[i]), Level{scale, 0}, numbers);
        }
        EXPECT_TRUE(same_bits(codes, wanted)) << scale;
        EXPECT_TRUE(same_bits(values, wanted_values)) << scale;
      }
    });
  }
}

enum class Weighing { kAlike, kImportance, kGram };

struct Group {
  const float* panel;  ///< [columns][kRowTile]
  int columns;
  const float* importance;
  const float* gram;
};

/// The best level of one row, put together as a team of lanes does.
Level search(const Group& group, int64_t row, const GridShape& shape) {
  const auto weight = [&](int c) { return group.panel[c * kRowTile + row]; };
  // Lanes take every second column, then join: the order does not matter.
  Extremes even, odd;
  for (int c = 0; c < group.columns; ++c) {
    (c % 2 == 0 ? even : odd) = widened(c % 2 == 0 ? even : odd, weight(c));
  }
  Extremes extremes = joined(odd, even);
  extremes = range_of(extremes, shape);
  Level best = candidate_level(extremes, shape, 0);
  float best_loss = 0;
  std::vector<float> error(group.columns);
  for (int i = 0; i < shape.candidates; ++i) {
    const Level level = candidate_level(extremes, shape, i);
    float loss = 0;
    with_numbers<float>(shape, [&](auto numbers) {
      loss = group.gram != nullptr
                 ? block_loss(weight, group.gram, group.columns, error.data(), 1, group.columns,
                              level, numbers)
                 : diagonal_loss(weight, group.importance, group.columns, level, numbers);
    });
    if (i > 0 && !is_better(loss, best_loss)) continue;
    best = level;
    best_loss = loss;
  }
  return best;
}

TEST_P(CudaArithmetic, RangeSearch) {
  for (const int columns : {1, 3, 64}) {
    const std::vector<float> weight = weights(columns * kRowTile, 1);
    const std::vector<float> gram = draw_gram(columns);
    std::vector<float> importance(columns), scratch(columns * kRowTile);
    for (int c = 0; c < columns; ++c) importance[c] = gram[c * columns + c];
    for (const Weighing weighing : {Weighing::kAlike, Weighing::kImportance, Weighing::kGram}) {
      const Group group{weight.data(), columns,
                        weighing == Weighing::kImportance ? importance.data() : nullptr,
                        weighing == Weighing::kGram ? gram.data() : nullptr};
      std::vector<GridShape> shapes{
          {3, false, 14}, {7, true, 14}, {15, false, 14}, {15, true, 1}, {255, false, 1}};
      shapes.insert(shapes.end(), kOtherShapes.begin(), kOtherShapes.end());
      shapes.insert(shapes.end(), kSignedShapes.begin(), kSignedShapes.end());
      for (const GridShape& shape : shapes) {
        std::vector<float> scale(kRowTile), zero(kRowTile), wanted(kRowTile), wanted_zero(kRowTile);
        cpu_.fit_group({.weight = group.panel,
                        .importance = group.importance,
                        .gram = group.gram,
                        .gram_stride = columns,
                        .scratch = scratch.data(),
                        .columns = columns},
                       shape, wanted.data(), wanted_zero.data());
        for (int64_t row = 0; row < kRowTile; ++row) {
          const Level best = search(group, row, shape);
          scale[row] = best.scale;
          zero[row] = best.zero;
        }
        EXPECT_TRUE(same_bits(scale, wanted)) << columns << " columns, largest " << shape.largest;
        EXPECT_TRUE(same_bits(zero, wanted_zero))
            << columns << " columns, largest " << shape.largest;
      }
    }
  }
}

// Right-looking, as a team does it, against the left-looking loop, which stands in reverse order.
TEST_P(CudaArithmetic, DecideAndFeedBack) {
  constexpr int64_t kColumns = 32;
  const std::vector<float> weight = weights(kColumns * kRowTile, 4);
  std::vector<float> target = weights(kColumns * kRowTile, 5);
  for (size_t i = 0; i < target.size(); ++i) target[i] = weight[i] + target[i] / 4;
  std::vector<float> factor = draw(Values::kNormal, kColumns * kColumns, 6);
  for (float& each : factor) each /= 8;
  const std::vector<float> diagonal = draw(Values::kNormal, kColumns, 7);
  const std::vector<float> scale(kRowTile, 0.5F), zero(kRowTile, 8);
  const std::vector<int64_t> group(kColumns, 0);
  std::vector<int64_t> column(kColumns);
  for (int64_t k = 0; k < kColumns; ++k) column[k] = kColumns - 1 - k;
  const std::vector<float> reversed_factor(factor.rbegin(), factor.rend());
  const std::vector<float> reversed_diagonal(diagonal.rbegin(), diagonal.rend());
  const auto reversed = [&](const std::vector<float>& panel) {
    std::vector<float> result(panel.size());
    for (int64_t k = 0; k < kColumns; ++k) {
      std::copy_n(panel.begin() + column[k] * kRowTile, kRowTile, result.begin() + k * kRowTile);
    }
    return result;
  };
  const std::vector<float> reversed_target = reversed(target);
  std::vector<float> error(weight.size()), wanted_error(weight.size());
  std::vector<uint8_t> codes(weight.size()), wanted_codes(weight.size());
  std::vector<double> energy(kRowTile), square(kRowTile), wanted_energy(kRowTile),
      wanted_square(kRowTile);
  cpu_.gptq_block({.weight = weight.data(),
                   .column = column.data(),
                   .group = group.data(),
                   .target = reversed_target.data(),
                   .factor = reversed_factor.data(),
                   .diagonal = reversed_diagonal.data(),
                   .scale = scale.data(),
                   .zero = zero.data(),
                   .error = wanted_error.data(),
                   .codes = wanted_codes.data(),
                   .energy = wanted_energy.data(),
                   .square = wanted_square.data(),
                   .columns = kColumns,
                   .shape = kShape});
  for (int64_t row = 0; row < kRowTile; ++row) {
    float energies = 0, squares = 0;
    for (int64_t k = 0; k < kColumns; ++k) {
      const int64_t at = k * kRowTile + row;
      const Level level{0.5F, 8};
      const Decision made = decide(weight[at], target[at], level, diagonal[k], Integers<float>{15});
      error[at] = made.error;
      codes[at] = static_cast<uint8_t>(code_of(made.unit, level, Integers<float>{15}));
      energies += made.residual * made.residual;
      squares += made.error * made.error;
      for (int64_t l = k + 1; l < kColumns; ++l) {
        target[l * kRowTile + row] =
            fed_back(target[l * kRowTile + row], made.error, factor[l * kColumns + k]);
      }
    }
    energy[row] = static_cast<double>(energies);
    square[row] = static_cast<double>(squares);
  }
  EXPECT_TRUE(same_bits(error, reversed(wanted_error)));
  EXPECT_TRUE(same_bits(codes, wanted_codes));
  EXPECT_TRUE(same_bits(energy, wanted_energy));
  EXPECT_TRUE(same_bits(square, wanted_square));
}

TEST_P(CudaArithmetic, ScaledError) {
  constexpr int64_t kColumns = 24;
  const std::vector<float> weight = weights(kColumns * kRowTile, 1);
  std::vector<float> factor = draw(Values::kNormal, kColumns, 2), inverse(kColumns);
  for (int64_t c = 0; c < kColumns; ++c) {
    factor[c] = std::exp(factor[c]);
    inverse[c] = 1 / factor[c];
  }
  const std::vector<float> square = draw(Values::kNormal, kColumns, 3);
  for (const bool symmetric : {false, true}) {
    std::vector<float> scaled(weight.size()), error(weight.size()), wanted(weight.size());
    std::vector<float> sum(kRowTile, 0), wanted_sum(kRowTile, 0);
    cpu_.awq->round_scaled({.weight = weight.data(),
                            .factor = factor.data(),
                            .inverse = inverse.data(),
                            .importance = nullptr,
                            .square = square.data(),
                            .scaled = scaled.data(),
                            .error = wanted.data(),
                            .sum = wanted_sum.data(),
                            .columns = kColumns,
                            .error_stride = kRowTile},
                           {15, symmetric, 14});
    for (int64_t c = 0; c < kColumns; ++c) {
      for (int64_t row = 0; row < kRowTile; ++row) {
        scaled[c * kRowTile + row] = weight[c * kRowTile + row] * factor[c];
      }
    }
    for (int64_t row = 0; row < kRowTile; ++row) {
      const Level level =
          search({scaled.data(), kColumns, nullptr, nullptr}, row, {15, symmetric, 14});
      for (int64_t c = 0; c < kColumns; ++c) {
        const float each =
            scaled_error(scaled[c * kRowTile + row], level, inverse[c], Integers<float>{15});
        error[c * kRowTile + row] = each;
        sum[row] += each * each * square[c];
      }
    }
    EXPECT_TRUE(same_bits(error, wanted));
    EXPECT_TRUE(same_bits(sum, wanted_sum));
  }
}

template <class T>
void compare_channels(const cpu::KernelTable& cpu, const std::vector<float>& values,
                      at::ScalarType type) {
  const auto tokens = static_cast<int64_t>(values.size());
  const at::Tensor x = at::tensor(values).to(type).unsqueeze(1);
  double sum = 0, absolute = 0, square = 0;
  float low = 0, high = 0;
  cpu.channels->moments(cpu::activations(x, 0, tokens), 0, 1, &sum, &absolute, &square);
  cpu.channels->range(cpu::activations(x, 0, tokens), 0, 1, &low, &high);
  const float unit = 0.75F;
  std::vector<double> counts(kHistogramBins), found(kHistogramBins);
  cpu.channels->histogram(cpu::activations(x, 0, tokens), 0, 1, &unit, counts.data());
  Moments moments;
  Extremes extremes;
  for (int64_t t = 0; t < tokens; ++t) {
    const float value = to_float(static_cast<const T*>(x.const_data_ptr())[t]);
    EXPECT_TRUE(same_bits(std::vector{value}, {x[t][0].item<float>()}));
    moments = added(moments, value);
    extremes = widened(extremes, value);
    found[histogram_bin(value / unit)] += 1;
  }
  EXPECT_EQ(found, counts);
  EXPECT_TRUE(same_bits(
      std::vector{moments.sum, moments.absolute, moments.square},
      {static_cast<float>(sum), static_cast<float>(absolute), static_cast<float>(square)}));
  EXPECT_EQ(extremes.low, low);
  EXPECT_EQ(extremes.high, high);
}

TEST_P(CudaArithmetic, Channels) {
  std::vector<float> values = weights(200, 8);
  compare_channels<float>(cpu_, values, at::kFloat);
  compare_channels<BFloat16>(cpu_, values, at::kBFloat16);
  for (float& value : values) value = std::clamp(value, -6e4F, 6e4F);
  compare_channels<Half>(cpu_, values, at::kHalf);
}

INSTANTIATE_TEST_SUITE_P(Isa, CudaArithmetic,
                         testing::Combine(testing::ValuesIn(std::vector<const cpu::KernelTable*>(
                                              cpu::available_kernels().begin(),
                                              cpu::available_kernels().end())),
                                          testing::ValuesIn(kAllValues)),
                         [](const auto& each) {
                           return std::string(std::get<0>(each.param)->name) + "_" +
                                  kNames[static_cast<size_t>(std::get<1>(each.param))];
                         });

TEST(CudaActivations, NanAndInfAreNotFinite) {
  using Limits = std::numeric_limits<float>;
  for (const float x : {0.0F, -0.0F, Limits::denorm_min(), -Limits::max(), Limits::max()}) {
    EXPECT_TRUE(is_finite(x)) << x;
  }
  for (const float x : {Limits::infinity(), -Limits::infinity(), Limits::quiet_NaN(),
                        -Limits::quiet_NaN(), Limits::signaling_NaN()}) {
    EXPECT_FALSE(is_finite(x)) << x;
  }
}

TEST(CudaPacking, WordsAndCodes) {
  for (int64_t bits = 2; bits <= 8; ++bits) {
    for (const int64_t columns : {1, 3, 16, 33, 64, 129}) {
      std::mt19937 engine(9);
      std::vector<int64_t> drawn(columns);
      for (int64_t& code : drawn) code = static_cast<int64_t>(engine() % (1U << bits));
      const at::Tensor codes = at::tensor(drawn).to(at::kByte).unsqueeze(0);
      const at::Tensor packed = pack_stub(at::kCPU, codes, bits);
      const auto* words = reinterpret_cast<const uint32_t*>(packed.const_data_ptr<int32_t>());
      for (int64_t word = 0; word < packed.size(1); ++word) {
        EXPECT_EQ(packed_word(codes.const_data_ptr<uint8_t>(), columns, bits, word), words[word])
            << bits << " bits, word " << word << " of " << columns << " codes";
      }
      for (int64_t c = 0; c < columns; ++c) {
        EXPECT_EQ(unpacked_code(words, bits, c), drawn[c]) << bits << " bits, code " << c;
      }
    }
  }
}

// Half to even: the codes themselves, not only their agreement.
TEST(CudaLevels, TiesGoToEven) {
  const std::vector<float> weight{-0.5F, 0.5F, 1.5F, 2.5F, 3.5F, -1.5F, -2.5F, 100, -100};
  const std::vector<uint8_t> wanted{8, 8, 10, 10, 12, 6, 6, 15, 0};
  std::vector<uint8_t> codes;
  for (const float each : weight) codes.push_back(nearest_code(each, {1, 8}, Integers<float>{15}));
  EXPECT_EQ(codes, wanted);
}

}  // namespace
}  // namespace mlcalib::cuda
