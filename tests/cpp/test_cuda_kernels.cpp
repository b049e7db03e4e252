// SPDX-License-Identifier: Apache-2.0
// The CUDA kernels, emulated, against the CPU backend: the sources that nvcc compiles, with every
// index, barrier and shuffle. What a GPU would add is only its own arithmetic.
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <limits>

#include "cpu/kernels/kernels.hpp"
#include "cuda/kernels/kernels.hpp"
#include "grids.hpp"
#include "reference.hpp"
#include "stubs.hpp"

namespace mlcalib::cuda {
namespace {

using reference::random_gram;
using reference::random_weight;
using reference::same_bits;

const float* data(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr<float>() : nullptr;
}

at::Tensor garbage(at::IntArrayRef shape) {
  return at::full(shape, std::numeric_limits<float>::quiet_NaN());
}

void expect_near(const at::Tensor& found, const at::Tensor& wanted, double tolerance) {
  EXPECT_LE((found - wanted).abs().max().item<double>(),
            tolerance * wanted.abs().max().item<double>());
}

struct FitCase : reference::Named {
  int64_t rows, columns, group_size, bits;
  bool symmetric;
  Range range;
};

const FitCase kFits[] = {
    {"minmax", 13, 96, 32, 4, false, Range::kMinMax},
    {"mse_tail", 9, 100, 32, 3, false, Range::kMse},
    {"gram_symmetric", 17, 64, 16, 4, true, Range::kGram},
    {"gram_row", 5, 70, kWholeRow, 2, false, Range::kGram},
    {"block", 9, 100, 32, 4, false, Range::kGramBlock},
    {"block_symmetric_row", 3, 150, kWholeRow, 4, true, Range::kGramBlock},
};

class CudaFit : public testing::TestWithParam<FitCase> {};

TEST_P(CudaFit, AgreesWithTheCpu) {
  const FitCase& fit = GetParam();
  GridSpec spec{.bits = fit.bits,
                .group_size = fit.group_size,
                .symmetric = fit.symmetric,
                .range = fit.range};
  const int64_t width = reference::group_width(spec, fit.columns);
  const at::Tensor weight = random_weight(fit.rows, fit.columns, 1);
  const at::Tensor gram = random_gram(fit.columns, 2);
  const at::Tensor importance =
      fit.range == Range::kGram ? gram.diagonal().contiguous() : at::Tensor();
  const at::Tensor block = fit.range == Range::kGramBlock ? gram : at::Tensor();
  const auto [wanted_scale, wanted_zero] = fit_grid_stub(at::kCPU, weight, importance, block, spec);
  const at::Tensor scale = garbage(wanted_scale.sizes()), zero = garbage(wanted_zero.sizes());
  const at::Tensor scratch = garbage({fit_scratch(fit.rows, fit.columns, width)});
  fit_grid({.weight = data(weight),
            .importance = data(importance),
            .gram = data(block),
            .gram_stride = fit.columns,
            .scratch = scratch.data_ptr<float>(),
            .rows = fit.rows,
            .columns = fit.columns,
            .stride = fit.columns,
            .width = width,
            .shape = grid_shape(spec),
            .scale = scale.data_ptr<float>(),
            .zero = zero.data_ptr<float>()},
           nullptr);
  EXPECT_TRUE(same_bits(scale, wanted_scale));
  EXPECT_TRUE(same_bits(zero, wanted_zero));
}

INSTANTIATE_TEST_SUITE_P(Cases, CudaFit, testing::ValuesIn(kFits), reference::name_of<FitCase>);

TEST(CudaKernels, QuantizeAndDequantize) {
  std::vector<GridSpec> specs;
  for (const int64_t group_size : {int64_t{16}, kWholeRow}) {
    for (const Numbers numbers : {Numbers::kInteger, Numbers::kNf4, Numbers::kE2m1}) {
      specs.push_back({.bits = 4, .group_size = group_size, .symmetric = true, .numbers = numbers});
    }
  }
  specs.push_back({.bits = 2, .group_size = 16, .super_block = 64, .scale_bits = 4});
  specs.push_back({.bits = 8,
                   .group_size = kWholeRow,
                   .symmetric = true,
                   .range = Range::kMse,
                   .numbers = Numbers::kE4m3,
                   .per_tensor = true});
  specs.push_back(
      {.bits = 3, .group_size = 16, .symmetric = true, .super_block = 64, .scale_bits = 6});
  for (const GridSpec& spec : specs) {
    const at::Tensor weight = random_weight(7, 150, 1);
    const Grid grid = fit_grid(weight, spec);
    const at::Tensor zero = grid.zero.to(at::kFloat);
    const Levels levels{grid.scale.const_data_ptr<float>(),
                        zero.const_data_ptr<float>(),
                        7,
                        150,
                        reference::group_width(spec, 150),
                        grid_shape(spec)};
    const at::Tensor codes = at::full({7, 150}, 99, at::kByte), values = garbage({7, 150});
    quantize(data(weight), levels, codes.data_ptr<uint8_t>(), nullptr);
    dequantize(codes.const_data_ptr<uint8_t>(), levels, values.data_ptr<float>(), nullptr);
    EXPECT_TRUE(same_bits(codes, quantize_stub(at::kCPU, weight, grid)));
    EXPECT_TRUE(same_bits(values, dequantize_stub(at::kCPU, codes, grid)));
  }
}

// As the CPU backend lays it out: R_kj / R_kk is M_jk, in reversed order and in tiles.
Factor cpu_factor(const at::Tensor& unit, const at::Tensor& diagonal) {
  const int64_t columns = unit.size(0), tile = cpu::kRowTile;
  const int64_t tiles = (columns + tile - 1) / tile;
  const at::Tensor matrix = at::zeros({tiles, tiles * tile, tile});
  for (int64_t k = 0; k < columns; ++k) {
    for (int64_t j = k; j < columns; ++j) {
      const int64_t a = columns - 1 - j, b = columns - 1 - k;
      if (j == k) {
        matrix[j / tile][k][j % tile] = 1;
      } else {
        matrix[j / tile][k][j % tile] = unit[a][b];
      }
    }
  }
  return {matrix, diagonal};
}

// A whole solve of one block, so that the CPU backend has no products between blocks to add.
TEST(CudaKernels, GptqBlock) {
  for (const auto& [rows, columns, numbers] : {std::tuple{5, 128, Numbers::kInteger},
                                               {40, 128, Numbers::kNf4},
                                               {33, 77, Numbers::kE2m1},
                                               {33, 77, Numbers::kInteger},
                                               {1, 1, Numbers::kInteger}}) {
    const bool integer = numbers == Numbers::kInteger;
    const GridSpec spec{
        .bits = integer ? 3 : 4, .group_size = 16, .symmetric = !integer, .numbers = numbers};
    const at::Tensor weight = random_weight(rows, columns, 1);
    const at::Tensor lower = random_weight(columns, columns, 2).tril() / 16;
    const at::Tensor factor = lower.tril(-1).t().contiguous();
    const at::Tensor diagonal = lower.diagonal().mul(16).round().exp2();
    const Grid grid = fit_grid(weight, spec);
    std::vector<int64_t> group_of;  // not in order: as after a permutation
    for (int64_t c = 0; c < columns; ++c) group_of.push_back(c * 7 % columns / 16);
    const GptqSolution wanted = gptq_stub(at::kCPU, {.weight = weight,
                                                     .visits = at::arange(columns),
                                                     .group_of = group_of,
                                                     .factor = cpu_factor(factor, diagonal),
                                                     .importance = diagonal,
                                                     .gram = {},
                                                     .spec = spec,
                                                     .grids = grid,
                                                     .block = 128});
    const at::Tensor zero = grid.zero.to(at::kFloat);
    const at::Tensor error = garbage({rows, columns});
    const at::Tensor codes = at::full({rows, columns}, 99, at::kByte);
    const at::Tensor energy = at::full({rows}, 0.5, at::kDouble);
    const at::Tensor square = at::full({rows}, 0.25, at::kDouble);
    gptq_block({.weight = data(weight),
                .target = data(weight),
                .factor = data(factor),
                .diagonal = data(diagonal),
                .scale = data(grid.scale),
                .zero = data(zero),
                .group_of = group_of.data(),
                .error = error.data_ptr<float>(),
                .codes = codes.data_ptr<uint8_t>(),
                .energy = energy.data_ptr<double>(),
                .square = square.data_ptr<double>(),
                .rows = rows,
                .columns = columns,
                .stride = columns,
                .target_stride = columns,
                .groups = grid.scale.size(1),
                .shape = grid_shape(spec)},
               nullptr);
    EXPECT_TRUE(same_bits(codes, wanted.codes)) << rows << " rows, " << columns << " columns";
    expect_near(energy - 0.5, wanted.energy, 1e-6);
    expect_near(square - 0.25, wanted.square, 1e-6);
    expect_near(error.to(at::kDouble).square().sum(1), wanted.square, 1e-6);
  }
}

// The rows of a matrix that is wider, and a target of its own width.
TEST(CudaKernels, GptqBlockReadsStrides) {
  const at::Tensor wide = random_weight(6, 50, 1), target = random_weight(6, 30, 2);
  const at::Tensor factor = random_weight(20, 20, 3).triu(1).contiguous() / 8;
  const at::Tensor scale = at::full({6, 1}, 0.25F), zero = at::full({6, 1}, 8.0F);
  const at::Tensor diagonal = at::full({20}, 1.0F);
  const std::vector<int64_t> group_of(20, 0);
  const auto solve = [&](const at::Tensor& weight, const at::Tensor& from) {
    const at::Tensor error = at::zeros({6, 50}), codes = at::zeros({6, 50}, at::kByte);
    const at::Tensor sums = at::zeros({2, 6}, at::kDouble);
    gptq_block({.weight = data(weight),
                .target = data(from),
                .factor = data(factor),
                .diagonal = data(diagonal),
                .scale = data(scale),
                .zero = data(zero),
                .group_of = group_of.data(),
                .error = error.data_ptr<float>(),
                .codes = codes.data_ptr<uint8_t>(),
                .energy = sums.data_ptr<double>(),
                .square = sums.data_ptr<double>() + 6,
                .rows = 6,
                .columns = 20,
                .stride = weight.size(1),
                .target_stride = from.size(1),
                .groups = 1,
                .shape = {15, false, 14}},
               nullptr);
    return error.view({-1})
        .narrow(0, 0, 6 * weight.size(1))
        .view({6, weight.size(1)})
        .narrow(1, 0, 20);
  };
  const at::Tensor narrow = wide.narrow(1, 0, 20).contiguous();
  EXPECT_TRUE(same_bits(solve(wide, target).contiguous(),
                        solve(narrow, target.narrow(1, 0, 20).contiguous()).contiguous()));
}

TEST(CudaKernels, RoundScaled) {
  const int64_t rows = 9, columns = 100;
  const at::Tensor weight = random_weight(rows, columns, 1);
  const at::Tensor factor = random_weight(1, columns, 2)[0].exp(), inverse = factor.reciprocal();
  const at::Tensor square = random_weight(1, columns, 3)[0].square();
  for (const bool weighted : {false, true}) {
    const GridSpec spec{
        .bits = 4, .group_size = 32, .range = weighted ? Range::kGram : Range::kMse};
    const at::Tensor importance = weighted ? square * inverse.square() : at::Tensor();
    const at::Tensor error = garbage({rows, columns}), sum = garbage({rows, 4});
    round_scaled({.weight = data(weight),
                  .factor = data(factor),
                  .inverse = data(inverse),
                  .importance = data(importance),
                  .square = data(square),
                  .rows = rows,
                  .columns = columns,
                  .width = 32,
                  .shape = {15, false, 14},
                  .error = error.data_ptr<float>(),
                  .sum = sum.data_ptr<float>()},
                 nullptr);
    const at::Tensor scaled = weight * factor;
    const auto [scale, zero] = fit_grid_stub(at::kCPU, scaled, importance, at::Tensor(), spec);
    const Grid grid{scale, zero.to(at::kByte), spec};
    const at::Tensor values =
        dequantize_stub(at::kCPU, quantize_stub(at::kCPU, scaled, grid), grid);
    EXPECT_TRUE(same_bits(error, (scaled - values) * inverse));
    expect_near(sum.sum(1), (error.square() * square).sum(1), 1e-6);
  }
}

TEST(CudaKernels, MomentsRangeAndHistogram) {
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16, at::kHalf}) {
    for (const auto& [tokens, channels] : {std::pair{1, 1}, {70, 33}, {9000, 5}}) {
      const at::Tensor wide = random_weight(tokens, channels + 3, 1).to(type);
      const at::Tensor x = wide.narrow(1, 2, channels);
      const Activations from{x.const_data_ptr(),
                             type == at::kFloat      ? Element::kFloat
                             : type == at::kBFloat16 ? Element::kBFloat16
                                                     : Element::kHalf,
                             tokens, channels, x.stride(0)};
      const at::Tensor found = at::full({3, channels}, 0.5, at::kDouble), wanted = found.clone();
      const at::Tensor low = at::full({channels}, 0.25F), high = at::full({channels}, -0.25F);
      const at::Tensor wanted_low = low.clone(), wanted_high = high.clone();
      double* sums = found.data_ptr<double>();
      moments_update(from, sums, sums + channels, sums + 2 * channels, nullptr);
      range_update(from, low.data_ptr<float>(), high.data_ptr<float>(), nullptr);
      moments_update_stub(at::kCPU, wanted[0], wanted[1], wanted[2], x);
      range_update_stub(at::kCPU, wanted_low, wanted_high, x);
      expect_near(found, wanted, 1e-6);
      EXPECT_TRUE(same_bits(low, wanted_low));
      EXPECT_TRUE(same_bits(high, wanted_high));
      const at::Tensor unit = random_weight(1, channels, 2)[0].exp();
      const at::Tensor counts = at::full({channels, kHistogramBins}, 0.5, at::kDouble);
      const at::Tensor wanted_counts = counts.clone();
      histogram_update(from, data(unit), counts.data_ptr<double>(), nullptr);
      histogram_update_stub(at::kCPU, wanted_counts, unit, x);
      EXPECT_TRUE(at::equal(counts, wanted_counts));
    }
  }
}

TEST(CudaKernels, CountsWhatIsNotFinite) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16, at::kHalf}) {
    for (const auto& [tokens, channels] : {std::pair{1, 1}, {70, 33}, {3, 2100}}) {
      const at::Tensor wide = random_weight(tokens, channels + 3, 1).to(type);
      const at::Tensor x = wide.narrow(1, 2, channels);
      // Beside x: not to be counted.
      wide.select(1, 1).fill_(kInf);
      wide.select(1, channels + 2).fill_(-kInf);
      const Element element = type == at::kFloat      ? Element::kFloat
                              : type == at::kBFloat16 ? Element::kBFloat16
                                                      : Element::kHalf;
      const Activations from{x.const_data_ptr(), element, tokens, channels, x.stride(0)};
      int64_t found = 5;
      count_nonfinite(from, &found, nullptr);
      EXPECT_EQ(found, 5);
      x[0][0] = kInf;
      x[tokens - 1][channels - 1] = std::numeric_limits<float>::quiet_NaN();
      x[tokens / 2][channels / 2] = -kInf;
      const auto wanted = at::isfinite(x).logical_not().sum().item<int64_t>();
      count_nonfinite(from, &found, nullptr);
      EXPECT_EQ(found, 5 + wanted);
    }
  }
}

at::Tensor random_symmetric(int64_t channels, uint32_t seed) {
  const at::Tensor upper = random_weight(channels, channels, seed).triu();
  return upper + upper.triu(1).t();
}

// The upper triangle in block rows, and not-a-numbers below it, which nobody may read.
at::Tensor packed(const at::Tensor& gram) {
  const at::Tensor upper = gram.triu() + garbage(gram.sizes()).tril(-1);
  const int64_t channels = gram.size(0);
  std::vector<at::Tensor> blocks;
  for (int64_t row = 0; row < channels; row += kBlockRows) {
    const int64_t rows = std::min(kBlockRows, channels - row);
    blocks.push_back(upper.narrow(0, row, rows).narrow(1, row, channels - row).flatten());
  }
  return at::cat(blocks);
}

// Shorter than a block row, as long, and of several.
TEST(CudaKernels, UnpackGram) {
  for (const int64_t channels : {1, 31, 32, 100, 1024, 2100}) {
    const at::Tensor wanted = random_symmetric(channels, 1), sums = packed(wanted);
    ASSERT_EQ(packed_size(channels), sums.numel()) << channels;
    const at::Tensor gram = garbage(wanted.sizes());
    unpack_gram(data(sums), channels, gram.data_ptr<float>(), nullptr);
    EXPECT_TRUE(same_bits(gram, wanted)) << channels;
  }
}

// Of several Grams each has its own sum.
TEST(CudaKernels, TriangleDots) {
  for (const int64_t channels : {1, 40, 270, 1100}) {
    for (const int count : {1, 3, TriangleDots::kGrams}) {
      if (channels > 40 && count > 1) continue;
      const at::Tensor square = random_symmetric(channels, 1), square_sums = packed(square);
      std::vector<at::Tensor> grams, gram_sums;
      TriangleDots dots{};
      for (; dots.count < count; ++dots.count) {
        grams.push_back(random_symmetric(channels, 2 + static_cast<uint32_t>(dots.count)));
        gram_sums.push_back(packed(grams.back()));
        dots.grams[dots.count] = data(gram_sums.back());
      }
      const at::Tensor sums = at::full({count, triangle_dot_sums(channels)}, 1e9, at::kDouble);
      dots.square = data(square_sums);
      dots.channels = channels;
      dots.sums = sums.data_ptr<double>();
      triangle_dots(dots, nullptr);
      for (int i = 0; i < count; ++i) {
        const at::Tensor products =
            square.to(at::kDouble) * grams[static_cast<size_t>(i)].to(at::kDouble);
        EXPECT_NEAR(sums[i].sum().item<double>(), products.sum().item<double>(),
                    1e-13 * products.abs().sum().item<double>())
            << channels << " channels, Gram " << i;
      }
    }
  }
}

TEST(CudaKernels, Dot) {
  for (const int64_t n : {1, 255, 257, 10000}) {
    const at::Tensor a = random_weight(1, n, 1), b = random_weight(1, n, 2);
    const at::Tensor sums = at::full({dot_sums(n)}, 1e9, at::kDouble);
    dot(data(a), data(b), n, sums.data_ptr<double>(), nullptr);
    EXPECT_NEAR(sums.sum().item<double>(), dot_stub(at::kCPU, a, b),
                1e-13 * static_cast<double>(n));
  }
}

TEST(CudaKernels, PackAndUnpack) {
  for (int64_t bits = 2; bits <= 8; ++bits) {
    for (const int64_t columns : {1, 33, 300}) {
      const at::Tensor codes = at::randint(1 << bits, {5, columns}).to(at::kByte);
      const at::Tensor wanted = pack_stub(at::kCPU, codes, bits);
      const at::Tensor packed = at::full_like(wanted, -1), back = at::full_like(codes, 99);
      auto* words = reinterpret_cast<uint32_t*>(packed.data_ptr<int32_t>());
      pack(codes.const_data_ptr<uint8_t>(), 5, columns, bits, words, nullptr);
      unpack(words, 5, columns, bits, back.data_ptr<uint8_t>(), nullptr);
      EXPECT_TRUE(same_bits(packed, wanted)) << bits << " bits, " << columns << " columns";
      EXPECT_TRUE(same_bits(back, codes)) << bits << " bits, " << columns << " columns";
    }
  }
}

}  // namespace
}  // namespace mlcalib::cuda
