// SPDX-License-Identifier: Apache-2.0
#include "scale_step.hpp"

#include <ATen/TensorOperators.h>
#include <ATen/ops/eye.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/linalg_solve_ex.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/where.h>

#include "grids.hpp"
#include "stubs.hpp"

namespace mlcalib {
namespace {

constexpr double kRidge = 1e-9;  // of the mean diagonal: a group of zeros has no scale

// That of a group by itself.
GridSpec of_one_group(GridSpec spec) {
  spec.group_size = kWholeRow;
  return spec;
}

}  // namespace

bool has_free_scales(const GridSpec& spec) {
  const at::ScalarType dtype = spec.scale_dtype;
  return !spec.per_tensor && spec.super_block == 0 &&
         (dtype == at::kFloat || dtype == at::kHalf || dtype == at::kBFloat16);
}

at::Tensor units_of(const at::Tensor& codes, const at::Tensor& zero, const GridSpec& spec) {
  const at::Tensor column = zero.unsqueeze(1).contiguous();
  const Grid ones{at::ones_like(column, column.options().dtype(at::kFloat)), column,
                  of_one_group(spec)};
  return dequantize_stub(codes.device().type(), codes.contiguous(), ones);
}

// In float64: nothing but the products that are given depends on how a device orders its sums.
ScaleStep step_scales(const ScaleProblem& problem, const GridSpec& spec) {
  const at::Tensor scale = problem.scale.unsqueeze(1);
  const at::Tensor units = problem.units.to(at::kDouble);
  const at::Tensor slope = (problem.gradient.to(at::kDouble) * units).sum(1, /*keepdim=*/true);
  const at::Tensor normal =
      at::mm(problem.felt.to(at::kDouble), units.t()) * problem.output.to(at::kDouble);
  const at::Tensor ridge =
      at::eye(normal.size(0), normal.options()) * (kRidge * normal.diagonal().mean());
  const auto [solved, info] = at::linalg_solve_ex(normal + ridge, slope);
  const at::Tensor wanted = (scale - solved).to(at::kFloat);
  const at::Tensor possible = at::isfinite(wanted).logical_and_(wanted * scale > 0);
  const at::Tensor held =
      round_grid(at::where(possible, wanted, scale), problem.zero.unsqueeze(1), of_one_group(spec))
          .scale;
  const at::Tensor taken = at::where(held * scale > 0, held - scale, 0).to(at::kDouble);
  // Half of what the loss changes by.
  const at::Tensor change =
      (taken * slope).sum() + at::mm(taken.t(), at::mm(normal, taken)).sum() / 2;
  const at::Tensor kept = at::where(change < 0, taken, 0);
  return {(scale + kept).to(at::kFloat).squeeze(1), (kept * units).to(at::kFloat)};
}

}  // namespace mlcalib
