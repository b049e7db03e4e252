// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <mlcalib/grid.hpp>

#include "stubs.hpp"

namespace mlcalib {

/// O, float32 [rows, rows], with `added` on its diagonal; undefined where rows are independent.
struct OutputGram {
  at::Tensor gram = {};
  double added = 0;
};

/// Coordinate descent from a solution, codes uint8 [rows, cols] of `weight` and their grid, on
/// tr(O D H Dᵀ), D = W − Ŵ, which never rises: the first sweep gives each group its best scales and
/// then each code its best value, later ones go through the codes alone. The last is one that
/// changes nothing. hessian float32 [cols, cols].
Descended descend(const at::Tensor& weight, const at::Tensor& hessian, const at::Tensor& codes,
                  const Grid& grid, int64_t sweeps, const OutputGram& output = {});

}  // namespace mlcalib
