// SPDX-License-Identifier: Apache-2.0
// Transposed panels: a matrix [rows, cols] stored as [cols][stride], so that kernels vectorise
// across rows. Padding rows are zero.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/zeros.h>

#include "kernels/kernels.hpp"

namespace mlcalib::cpu {

/// Row tiles of a panel.
inline int64_t row_tiles(int64_t rows) { return (rows + kRowTile - 1) / kRowTile; }

/// An odd number of row tiles: with a power of two, a tile's columns would share cache sets.
inline int64_t panel_stride(int64_t rows) { return (row_tiles(rows) | 1) * kRowTile; }

/// float32 [cols, panel_stride(rows)] of a matrix [rows, cols].
inline at::Tensor to_panel(const at::Tensor& matrix) {
  at::Tensor panel =
      at::zeros({matrix.size(1), panel_stride(matrix.size(0))}, matrix.options().dtype(at::kFloat));
  panel.narrow(1, 0, matrix.size(0)).copy_(matrix.t());
  return panel;
}

/// The matrix [rows, cols] that a panel [cols, stride] holds.
inline at::Tensor from_panel(const at::Tensor& panel, int64_t rows) {
  return panel.narrow(1, 0, rows).t().contiguous();
}

}  // namespace mlcalib::cpu
