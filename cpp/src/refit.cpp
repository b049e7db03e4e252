// SPDX-License-Identifier: Apache-2.0
#include "refit.hpp"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/eye.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/linalg_solve_ex.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <vector>

#include "grids.hpp"
#include "stubs.hpp"

namespace mlcalib {
namespace {

constexpr int64_t kRows = 512;   // at a time: bounds the normal matrices, and scratch
constexpr double kRidge = 1e-6;  // of the mean diagonal: a group of zeros has no scale

// Sums over the columns of each group: [rows, cols] → [rows, groups].
at::Tensor group_sums(const at::Tensor& matrix, int64_t width, int64_t groups) {
  const int64_t missing = groups * width - matrix.size(1);
  const at::Tensor padded = missing == 0 ? matrix : at::constant_pad_nd(matrix, {0, missing});
  return padded.view({matrix.size(0), groups, width}).sum(-1);
}

at::Tensor refit_rows(const at::Tensor& weight, const at::Tensor& unit, const at::Tensor& scale,
                      const at::Tensor& hessian, int64_t width) {
  const int64_t rows = weight.size(0), columns = weight.size(1), groups = scale.size(1);
  const at::Tensor wanted = group_sums(at::mm(weight, hessian) * unit, width, groups);
  const at::Tensor normal = at::empty({rows, groups, groups}, weight.options());
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t first = g * width, count = std::min(width, columns - first);
    const at::Tensor product =
        at::mm(unit.narrow(1, first, count), hessian.narrow(0, first, count));
    normal.select(1, g).copy_(group_sums(product.mul_(unit), width, groups));
  }
  const at::Tensor diagonal = normal.diagonal(0, 1, 2);
  const at::Tensor ridge = diagonal.mean(-1).mul_(kRidge).view({rows, 1, 1});
  const auto [solved, info] =
      at::linalg_solve_ex(normal + ridge * at::eye(groups, weight.options()), wanted.unsqueeze(-1));
  const at::Tensor fitted = solved.squeeze(-1);
  const at::Tensor same_sign = fitted.mul(scale.sign()) > 0;
  return at::where(same_sign.logical_and_(at::isfinite(fitted)), fitted, scale);
}

// Sums of terms(rows) over columns, some rows at a time; float64 [rows].
template <class Terms>
at::Tensor row_sums(const at::Tensor& error, const Terms& terms) {
  std::vector<at::Tensor> sums;
  for (int64_t first = 0; first < error.size(0); first += kRows) {
    const at::Tensor rows = error.narrow(0, first, std::min(kRows, error.size(0) - first));
    sums.push_back(terms(rows).sum(-1, /*keepdim=*/false, at::kDouble));
  }
  return at::cat(sums);
}

// The one scale of all rows.
at::Tensor refit_tensor_scale(const at::Tensor& weight, const at::Tensor& unit,
                              const at::Tensor& scale, const at::Tensor& hessian) {
  const at::Tensor product = at::mm(unit, hessian);
  const at::Tensor fitted = (product * weight).sum(at::kDouble) / (product * unit).sum(at::kDouble);
  const at::Tensor better = (fitted > 0).logical_and_(at::isfinite(fitted));
  return at::where(better, fitted.to(at::kFloat), scale);
}

}  // namespace

at::Tensor refit_scale(const at::Tensor& weight, const at::Tensor& codes, const Grid& grid,
                       const at::Tensor& hessian) {
  const int64_t width = group_width(grid.spec, weight.size(1));
  if (grid.spec.per_tensor) {
    const Grid units{at::ones_like(grid.scale), grid.zero, grid.spec};
    const at::Tensor unit = dequantize_stub(weight.device().type(), codes, units);
    return refit_tensor_scale(weight, unit, grid.scale, hessian);
  }
  std::vector<at::Tensor> parts;
  for (int64_t first = 0; first < weight.size(0); first += kRows) {
    const int64_t count = std::min(kRows, weight.size(0) - first);
    const at::Tensor scale = grid.scale.narrow(0, first, count);
    const at::Tensor zero = grid.zero.narrow(0, first, count);
    const auto values = [&](const at::Tensor& scales, const at::Tensor& zeros) {
      return dequantize_stub(weight.device().type(), codes.narrow(0, first, count),
                             {scales, zeros, grid.spec});
    };
    at::Tensor wanted = weight.narrow(0, first, count);
    at::Tensor unit_zero = zero;
    if (grid.spec.has_minima()) {  // they stay: scales are fitted to what is above them
      wanted = wanted - values(at::zeros_like(scale), zero);
      unit_zero = at::zeros_like(zero);
    }
    parts.push_back(
        refit_rows(wanted, values(at::ones_like(scale), unit_zero), scale, hessian, width));
  }
  return at::cat(parts);
}

at::Tensor row_energy(const at::Tensor& error, const at::Tensor& hessian) {
  return row_sums(error, [&](const at::Tensor& rows) { return at::mm(rows, hessian).mul_(rows); });
}

at::Tensor row_square(const at::Tensor& error) {
  return row_sums(error, [](const at::Tensor& rows) { return rows.square(); });
}

}  // namespace mlcalib
