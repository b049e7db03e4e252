// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <mlcalib/grid.hpp>

namespace mlcalib {

/// O, float32 [rows, rows], with `added` on its diagonal; undefined where rows are independent.
struct OutputGram {
  at::Tensor gram = {};
  double added = 0;
};

/// Coordinate descent from a solution: codes uint8 [rows, cols] of `weight` on `grid` that make
/// tr(O D H Dᵀ), D = W − Ŵ, no larger, and smaller where one code alone can do that. Each sweep
/// goes through all codes once; the last is one that changes nothing. hessian float32 [cols, cols].
at::Tensor descend(const at::Tensor& weight, const at::Tensor& hessian, const at::Tensor& codes,
                   const Grid& grid, int64_t sweeps, const OutputGram& output = {});

}  // namespace mlcalib
