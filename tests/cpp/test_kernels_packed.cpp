// SPDX-License-Identifier: Apache-2.0
// Products of packed weights, of every instruction set that this machine has and of AMX on emulated
// tiles, against double.
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <limits>
#include <mlcalib/packed_linear.hpp>
#include <mlcalib/rtn.hpp>
#include <tuple>
#include <vector>

#include "amx_emulation.hpp"
#include "cpu/activations.hpp"
#include "cpu/packed_layout.hpp"
#include "reference.hpp"

namespace mlcalib::cpu {
namespace {

struct Case {
  int64_t rows, columns, bits, group_size;
  bool symmetric;
  at::ScalarType scale_dtype;
};

// Tiles, steps and groups that are whole, and that are not.
const std::vector<Case> kCases{
    {1, 1, 4, -1, false, at::kFloat},       {32, 64, 4, 32, false, at::kBFloat16},
    {33, 65, 4, 64, true, at::kBFloat16},   {70, 100, 4, 33, false, at::kHalf},
    {64, 300, 4, -1, false, at::kBFloat16}, {96, 256, 4, 16, true, at::kHalf},
    {1, 9, 8, -1, true, at::kFloat},        {32, 64, 8, 32, false, at::kBFloat16},
    {70, 100, 8, 33, false, at::kHalf},     {64, 300, 8, -1, true, at::kFloat},
    {40, 72, 3, 24, true, at::kBFloat16},   {40, 72, 5, 24, false, at::kFloat}};

struct Kernels {
  std::string name;
  const PackedRowKernels* row;
  const PackedBlockKernels* blocks;
};

std::vector<Kernels> every_set() {
  std::vector<Kernels> found;
  for (const KernelTable* table : available_kernels()) {
    found.push_back({table->name, table->packed_row, table->packed_blocks});
  }
  found.push_back({"amx_emulated", kernels().packed_row, &amx_emulated::packed_block_kernels});
  return found;
}

class PackedKernelTest : public testing::TestWithParam<std::tuple<Kernels, at::ScalarType>> {
 protected:
  const PackedRowKernels& row_ = *std::get<0>(GetParam()).row;
  const PackedBlockKernels& blocks_ = *std::get<0>(GetParam()).blocks;
  const at::ScalarType dtype_ = std::get<1>(GetParam());

  // Columns of a wider tensor whose others are NaN: reading one would show.
  at::Tensor activations_of(int64_t tokens, int64_t channels) const {
    const at::Tensor wide =
        at::full({tokens, channels + 5}, std::numeric_limits<double>::quiet_NaN(), dtype_);
    const at::Tensor x = wide.narrow(1, 2, channels);
    x.copy_(reference::to_tensor(reference::activations(tokens, channels, 1)));
    return x;
  }

  at::Tensor rows(const at::Tensor& x, const PackedWeight& w, const at::Tensor& bias) const {
    const at::Tensor y = at::full({x.size(0), w.rows}, 7, dtype_);
    const at::Tensor prepared = at::zeros({w.steps * kPackedColumns + w.groups}, at::kFloat);
    for (int64_t t = 0; t < x.size(0); ++t) {
      row_.prepare(activations(x, t, 1), w, prepared.data_ptr<float>());
      row_.row(prepared.const_data_ptr<float>(), w, 0, tiles_of(w),
               {y[t].data_ptr(), bias.const_data_ptr(), element_of(dtype_)});
    }
    return y;
  }

  at::Tensor blocks(const at::Tensor& x, const PackedWeight& w) const {
    const at::Tensor y = at::full({x.size(0), w.rows}, 7, dtype_);
    const int64_t count = divide_up(x.size(0), blocks_.tokens);
    const at::Tensor packed =
        at::zeros({count * blocks_.floats(w, element_of(dtype_))}, at::kFloat);
    const Activations from = activations(x, 0, x.size(0));
    blocks_.pack(from, w, 0, count, packed.data_ptr<float>());
    for (int64_t tile = 0; tile < tiles_of(w); ++tile) {
      for (int64_t b = 0; b < count; b += blocks_.chunk) {
        blocks_.blocks(packed.const_data_ptr<float>(), from, w, tile, b,
                       std::min(b + blocks_.chunk, count),
                       {y.data_ptr(), nullptr, element_of(dtype_)});
      }
    }
    return y;
  }

  // Sums differ by their order, results by the rounding to their type.
  void expect_near(const at::Tensor& found, const reference::Matrix& wanted,
                   const reference::Matrix& size) const {
    const double rounding = dtype_ == at::kFloat ? 0 : dtype_ == at::kHalf ? 5e-4 : 4e-3;
    const reference::Matrix values = reference::to_matrix(found);
    for (int64_t t = 0; t < wanted.rows(); ++t) {
      for (int64_t r = 0; r < wanted.cols(); ++r) {
        ASSERT_NEAR(values(t, r), wanted(t, r),
                    2e-6 * size(t, r) + rounding * std::abs(wanted(t, r)) + 1e-7);
      }
    }
  }
};

TEST_P(PackedKernelTest, AgreeWithDouble) {
  for (const Case& c : kCases) {
    SCOPED_TRACE(testing::Message() << c.rows << " x " << c.columns << ", " << c.bits
                                    << " bits, groups of " << c.group_size);
    const GridSpec spec{c.bits, c.group_size, c.symmetric, Range::kMinMax, c.scale_dtype};
    const QuantizedLinear quantized = rtn(reference::random_weight(c.rows, c.columns, 3), spec);
    const at::Tensor packed = pack_linear(quantized);
    const PackedWeight w = layout_of(packed, c.rows, c.columns, spec);
    const reference::Matrix weight = reference::to_matrix(quantized.dequantize()).transpose();
    const at::Tensor bias = reference::random_weight(1, c.rows, 4)[0].to(dtype_);
    for (const int64_t tokens : {1, 2, 12, 13, 200}) {
      const at::Tensor x = activations_of(tokens, c.columns);
      const reference::Matrix values = reference::to_matrix(x);
      const reference::Matrix wanted = values * weight;
      // Zero points are taken off the sums of one token: their terms count too.
      const reference::Matrix size =
          (values.cwiseAbs() * weight.cwiseAbs()).array() +
          values.cwiseAbs().rowwise().sum().maxCoeff() * weight.cwiseAbs().maxCoeff();
      expect_near(blocks(x, w), wanted, size);
      if (tokens > 2) continue;
      reference::Matrix biased = wanted;
      biased.rowwise() += reference::to_matrix(bias.unsqueeze(0)).row(0);
      expect_near(rows(x, w, bias), biased, size);
    }
  }
}

TEST_P(PackedKernelTest, NotANumberStaysOne) {
  const GridSpec spec{4, 16, false, Range::kMinMax, at::kFloat};
  const at::Tensor packed = pack_linear(rtn(reference::random_weight(5, 20, 3), spec));
  const PackedWeight w = layout_of(packed, 5, 20, spec);
  const at::Tensor x = at::zeros({3, 20}, dtype_);
  x[1][4] = std::numeric_limits<double>::quiet_NaN();
  const at::Tensor bias = at::zeros({5}, dtype_);
  for (const at::Tensor& y : {rows(x, w, bias), blocks(x, w)}) {
    EXPECT_TRUE(y[1].isnan().all().item<bool>());
    EXPECT_TRUE(y[0].eq(0).all().item<bool>());
    EXPECT_TRUE(y[2].eq(0).all().item<bool>());
  }
}

INSTANTIATE_TEST_SUITE_P(EveryInstructionSet, PackedKernelTest,
                         testing::Combine(testing::ValuesIn(every_set()),
                                          testing::Values(at::kFloat, at::kBFloat16, at::kHalf)),
                         [](const auto& each) {
                           return std::get<0>(each.param).name + "_" +
                                  c10::toString(std::get<1>(each.param));
                         });

}  // namespace
}  // namespace mlcalib::cpu
