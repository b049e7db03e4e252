// SPDX-License-Identifier: Apache-2.0
// Transposed panels: a matrix [rows, cols] in tiles of kRowTile rows, [tile][column][kRowTile], so
// that kernels vectorise across rows and what they read of a tile lies together. Padding is zero.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <algorithm>

#include "../host_device.hpp"
#include "kernels/kernels.hpp"

namespace mlcalib::cpu {

inline int64_t row_tiles(int64_t rows) { return divide_up(rows, kRowTile); }

/// to[j * to_stride + i] = from[i * from_stride + j] for i < rows and j < columns.
template <class From, class To>
void transpose(const From* __restrict from, int64_t from_stride, int64_t rows, int64_t columns,
               To* __restrict to, int64_t to_stride) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) {
      to[j * to_stride + i] = static_cast<To>(from[i * from_stride + j]);
    }
  }
}

/// Calls move(row, rows, column, columns, at) for pieces of a matrix, `at` their place in its
/// panel, that are small enough for both sides to stay in the first-level cache.
template <class Move>
void for_each_in_panel(int64_t rows, int64_t columns, const Move& move) {
  constexpr int64_t kColumns = 16;
  at::parallel_for(0, row_tiles(rows), 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin * kRowTile; row < std::min(end * kRowTile, rows); row += kRowTile) {
      for (int64_t column = 0; column < columns; column += kColumns) {
        move(row, std::min(kRowTile, rows - row), column, std::min(kColumns, columns - column),
             row * columns + column * kRowTile);
      }
    }
  });
}

/// A contiguous matrix [rows, cols] of From as a panel [tiles, cols, kRowTile] of To.
template <class From, class To = float>
at::Tensor to_panel(const at::Tensor& matrix) {
  const int64_t rows = matrix.size(0), stride = matrix.size(1);
  const at::Tensor panel =
      at::empty({row_tiles(rows), stride, kRowTile}, c10::CppTypeToScalarType<To>::value);
  if (rows % kRowTile != 0) panel.select(0, panel.size(0) - 1).zero_();
  const From* from = matrix.const_data_ptr<From>();
  To* to = panel.data_ptr<To>();
  for_each_in_panel(rows, stride, [&](int64_t r, int64_t n, int64_t c, int64_t m, int64_t at) {
    transpose(from + r * stride + c, stride, n, m, to + at, kRowTile);
  });
  return panel;
}

/// Scales float32 [rows, groups] as a panel; those of the padding are 1, for weights are divided by
/// them.
inline at::Tensor scale_panel(const at::Tensor& scale) {
  const at::Tensor panel = to_panel<float>(scale.contiguous());
  const int64_t padding = panel.size(0) * kRowTile - scale.size(0);
  panel.select(0, -1).narrow(1, kRowTile - padding, padding).fill_(1);
  return panel;
}

/// The matrix [rows, cols] of To that a panel [tiles, cols, kRowTile] of From holds.
template <class From, class To>
at::Tensor from_panel(const at::Tensor& panel, int64_t rows) {
  const int64_t stride = panel.size(1);
  at::Tensor matrix = at::empty({rows, stride}, c10::CppTypeToScalarType<To>::value);
  const From* from = panel.const_data_ptr<From>();
  To* to = matrix.data_ptr<To>();
  for_each_in_panel(rows, stride, [&](int64_t r, int64_t n, int64_t c, int64_t m, int64_t at) {
    transpose(from + at, kRowTile, m, n, to + r * stride + c, stride);
  });
  return matrix;
}

}  // namespace mlcalib::cpu
