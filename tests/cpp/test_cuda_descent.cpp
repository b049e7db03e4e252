// SPDX-License-Identifier: Apache-2.0
// The CUDA kernel of coordinate descent, emulated, decides what the CPU's decides, bit for bit.
#include <ATen/TensorOperators.h>
#include <ATen/ops/full.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>

#include "cpu/kernels/kernels.hpp"
#include "cuda/kernels/kernels.hpp"
#include "grids.hpp"
#include "reference.hpp"

namespace mlcalib::cuda {
namespace {

using reference::random_gram;
using reference::random_weight;
using reference::same_bits;

// [tile rows][columns] as the CPU's panel [columns][kRowTile], of one tile.
at::Tensor panel_of(const at::Tensor& rows, double padding = 0) {
  const at::Tensor panel = at::full({rows.size(1), cpu::kRowTile}, padding, rows.options());
  panel.narrow(1, 0, rows.size(0)).copy_(rows.t());
  return panel;
}

struct DescentCase : reference::Named {
  int64_t rows, columns;
  Numbers numbers;
};

const DescentCase kDescents[] = {
    {"whole", 48, 128, Numbers::kInteger}, {"nf4", 48, 60, Numbers::kNf4},
    {"e2m1", 33, 77, Numbers::kE2m1},      {"less_than_a_warp", 5, 30, Numbers::kInteger},
    {"one", 1, 1, Numbers::kInteger},
};

class CudaDescent : public testing::TestWithParam<DescentCase> {};

TEST_P(CudaDescent, DecidesAsTheCpu) {
  const DescentCase& each = GetParam();
  const int64_t rows = each.rows, columns = each.columns;
  const Numbers numbers = each.numbers;
  const bool integer = numbers == Numbers::kInteger;
  const GridSpec spec{
      .bits = integer ? 3 : 4, .group_size = 16, .symmetric = !integer, .numbers = numbers};
  const at::Tensor weight = random_weight(rows, columns, 1), gram = random_gram(columns, 2);
  const at::Tensor output = random_gram(rows, 3);
  const Grid grid = fit_grid(weight, spec);
  const at::Tensor codes = at::randint(integer ? 8 : 16, {rows, columns}).to(at::kByte);
  const at::Tensor error = dequantize(codes, grid) - weight;
  const at::Tensor felt = at::mm(output, error), gradient = at::mm(felt, gram);
  std::vector<int64_t> group_of;
  for (int64_t c = 0; c < columns; ++c) group_of.push_back(c / 16);

  const at::Tensor own = at::zeros({cpu::kRowTile, cpu::kRowTile});
  own.narrow(0, 0, rows).narrow(1, 0, rows).copy_(output);
  const at::Tensor diagonal = own.diagonal().clone();
  diagonal.narrow(0, rows, cpu::kRowTile - rows).fill_(1);
  const at::Tensor scale = panel_of(grid.scale, 1), zero = panel_of(grid.zero.to(at::kFloat));
  const at::Tensor wanted = panel_of(codes), wanted_felt = panel_of(felt);
  const at::Tensor first = panel_of(gradient), change = at::zeros_like(first);
  cpu::kernels().descent->block({.gram = gram.const_data_ptr<float>(),
                                 .output = own.const_data_ptr<float>(),
                                 .diagonal = diagonal.const_data_ptr<float>(),
                                 .group = group_of.data(),
                                 .scale = scale.const_data_ptr<float>(),
                                 .zero = zero.const_data_ptr<float>(),
                                 .gradient = first.data_ptr<float>(),
                                 .felt = wanted_felt.data_ptr<float>(),
                                 .change = change.data_ptr<float>(),
                                 .codes = wanted.data_ptr<uint8_t>(),
                                 .gram_stride = columns,
                                 .columns = columns,
                                 .shape = grid_shape(spec)});

  const at::Tensor found = codes.clone(), own_felt = felt.clone(), own_error = error.clone();
  const at::Tensor zeros = grid.zero.to(at::kFloat), changed = at::zeros({1}, at::kInt);
  descent_block({.gram = gram.const_data_ptr<float>(),
                 .output = output.const_data_ptr<float>(),
                 .gradient = gradient.const_data_ptr<float>(),
                 .scale = grid.scale.const_data_ptr<float>(),
                 .zero = zeros.const_data_ptr<float>(),
                 .group_of = group_of.data(),
                 .felt = own_felt.data_ptr<float>(),
                 .error = own_error.data_ptr<float>(),
                 .codes = found.data_ptr<uint8_t>(),
                 .changed = changed.data_ptr<int32_t>(),
                 .rows = rows,
                 .columns = columns,
                 .stride = columns,
                 .gram_stride = columns,
                 .output_stride = rows,
                 .groups = grid.scale.size(1),
                 .shape = grid_shape(spec)},
                nullptr);
  const auto rows_of = [&](const at::Tensor& panel) {
    return panel.narrow(1, 0, rows).t().contiguous();
  };
  EXPECT_TRUE(same_bits(found, rows_of(wanted)));
  EXPECT_TRUE(same_bits(own_felt, rows_of(wanted_felt)));
  EXPECT_TRUE(same_bits(own_error, error + rows_of(change)));
  EXPECT_EQ(changed.item<int32_t>() != 0, !same_bits(found, codes));
}

INSTANTIATE_TEST_SUITE_P(Cases, CudaDescent, testing::ValuesIn(kDescents),
                         reference::name_of<DescentCase>);

}  // namespace
}  // namespace mlcalib::cuda
