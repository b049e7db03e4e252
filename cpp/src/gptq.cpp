// SPDX-License-Identifier: Apache-2.0
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/argsort.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/where.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <mlcalib/gptq.hpp>
#include <variant>

#include "check.hpp"
#include "cholesky.hpp"
#include "descent.hpp"
#include "full_precision.hpp"
#include "grids.hpp"
#include "refit.hpp"
#include "row_feed.hpp"
#include "stubs.hpp"

namespace mlcalib {

std::string_view to_string(Order order) {
  return order == Order::kActivation ? "activation" : "natural";
}

Order parse_order(std::string_view name) {
  for (const Order order : {Order::kActivation, Order::kNatural}) {
    if (to_string(order) == name) return order;
  }
  TORCH_CHECK_VALUE(false, "order is '", name, "', expected 'activation' or 'natural'.");
}

void GptqOptions::check() const {
  grid.check();
  TORCH_CHECK_VALUE(std::isfinite(damp) && damp > 0, "damp is ", damp,
                    ", expected a positive fraction of the mean of the Gram's diagonal.");
  TORCH_CHECK_VALUE(block > 0, "block is ", block, ", expected a positive number of columns.");
  TORCH_CHECK_VALUE(refit >= 0, "refit is ", refit, ", expected a number of rounds, 0 or more.");
  TORCH_CHECK_VALUE(sweeps >= 0, "sweeps is ", sweeps, ", expected a number of sweeps, 0 or more.");
  TORCH_CHECK_VALUE(std::isfinite(output_damp) && output_damp > 0, "output_damp is ", output_damp,
                    ", expected a positive fraction of the mean of the output Gram's diagonal.");
  TORCH_CHECK_VALUE(static_grid || order == Order::kNatural,
                    "static_grid=False fits grids as groups are reached, which needs ",
                    "order='natural'; with order='activation' grids are static.");
  TORCH_CHECK_VALUE(static_grid || !grid.has_nested_scales(),
                    "static_grid=False fits grids as groups are reached, but scales in uint8 are ",
                    "quantized together, before the solve; use static_grid=True.");
}

namespace {

std::vector<int64_t> groups_of(const at::Tensor& visits, const GridSpec& spec) {
  const at::Tensor host = visits.to(at::kCPU).contiguous();
  const int64_t* column = host.const_data_ptr<int64_t>();
  std::vector<int64_t> groups(column, column + host.numel());
  for (int64_t& group : groups) {
    group = spec.group_size == kWholeRow ? 0 : group / spec.group_size;
  }
  return groups;
}

/// One factorisation, and the solves that it serves.
class Solver {
 public:
  Solver(const at::Tensor& gram, const GptqOptions& options)
      : gram_(gram), options_(options), mean_(mean_diagonal(gram)) {
    importance_ = gram.diagonal() + options.damp * mean_;
    visits_ = options.order == Order::kActivation
                  ? at::argsort(importance_, /*stable=*/true, /*dim=*/0, /*descending=*/true)
                  : at::arange(gram.size(0), importance_.options().dtype(at::kLong));
    damp_ = raise_damp(options.damp, [&](double damp) {
      factor_ = factorize_stub(gram.device().type(), gram, visits_, damp * mean_);
      return factor_.matrix.defined();
    });
    if (options.grid.range == Range::kGramBlock) ranging_ = damped(options.damp);
  }

  double damp() const { return damp_; }

  /// H, with the damping that the factorisation took.
  at::Tensor hessian() const { return damped(damp_); }

  /// What a solve of these weights, or of some of their rows, stands on; where scales are quantized
  /// together, of all rows of one.
  GptqGrids grids_of(const at::Tensor& weight) const {
    const GridSpec& spec = options_.grid;
    if (spec.per_tensor) return tensor_grid(weight);
    if (!spec.has_nested_scales()) {
      return options_.static_grid ? GptqGrids(FittedBefore()) : FittedAsReached();
    }
    const bool weighted = spec.range == Range::kGram;
    const auto [scale, zero] = fit_grid_stub(weight.device().type(), weight,
                                             weighted ? importance_ : at::Tensor(), ranging_, spec);
    return round_grid(scale, zero, spec);
  }

  /// row_feed: of GptqProblem.
  GptqSolution run(const at::Tensor& weight, GptqGrids grids, at::Tensor row_feed = {}) const {
    const Grid* given = std::get_if<Grid>(&grids);
    const GridSpec spec = given == nullptr ? options_.grid : given->spec;
    return gptq_stub(weight.device().type(), {.weight = weight,
                                              .visits = visits_,
                                              .group_of = groups_of(visits_, options_.grid),
                                              .factor = factor_,
                                              .importance = importance_,
                                              .gram = ranging_,
                                              .spec = spec,
                                              .grids = std::move(grids),
                                              .block = options_.block,
                                              .row_feed = std::move(row_feed)});
  }

  /// tr(D G Dᵀ) = tr(D H Dᵀ) − λ‖D‖², row by row.
  at::Tensor loss(const GptqSolution& solution) const {
    return solution.energy - solution.square * (damp_ * mean_);
  }

 private:
  // A group that is a whole row is reached before any of its columns has changed.
  Grid tensor_grid(const at::Tensor& weight) const {
    const bool weighted = options_.grid.range == Range::kGram;
    return fit_tensor_grid(weight, weighted ? importance_ : at::Tensor(), ranging_, options_.grid);
  }

  at::Tensor damped(double damp) const {
    at::Tensor copy = gram_.clone(at::MemoryFormat::Contiguous);
    copy.diagonal().add_(damp * mean_);
    return copy;
  }

  const at::Tensor& gram_;
  const GptqOptions& options_;
  double mean_, damp_ = 0;
  at::Tensor visits_, importance_;
  Factor factor_;
  at::Tensor ranging_;  // H, where the range search weighs by its blocks
};

// Rows are independent: of each the better one. Where they share a scale, or scales are quantized
// together, of all.
void keep_better(GptqSolution& best, const GptqSolution& other) {
  const GridSpec& spec = best.grid.spec;
  const at::Tensor better = spec.per_tensor || spec.has_nested_scales()
                                ? (other.energy.sum() < best.energy.sum()).expand_as(best.energy)
                                : other.energy < best.energy;
  const at::Tensor rows = better.unsqueeze(1);
  best.codes = at::where(rows, other.codes, best.codes);
  best.grid.scale = at::where(rows, other.grid.scale, best.grid.scale);
  best.grid.zero = at::where(rows, other.grid.zero, best.grid.zero);
  best.energy = at::where(better, other.energy, best.energy);
  best.square = at::where(better, other.square, best.square);
}

// Puts what codes and a grid lose into `energy` and `square`.
void measure(GptqSolution& solution, const at::Tensor& weight, const at::Tensor& hessian) {
  const at::Tensor error =
      dequantize_stub(weight.device().type(), solution.codes, solution.grid).sub_(weight);
  solution.energy = row_energy(error, hessian);
  solution.square = row_square(error);
}

// Scales refitted to the codes, and all solved again on these, options.refit times; the best of it
// all, with its codes polished.
GptqSolution refine(const at::Tensor& weight, const Solver& solver, const GptqOptions& options) {
  GptqSolution current = solver.run(weight, solver.grids_of(weight));
  GptqSolution best = current;
  const int64_t rounds = options.refit;
  const at::Tensor hessian = rounds + options.sweeps > 0 ? solver.hessian() : at::Tensor();
  for (int64_t round = 0; round < rounds; ++round) {
    if (round > 0) {
      current = solver.run(weight, current.grid);
      keep_better(best, current);
    }
    const at::Tensor scale = refit_scale(weight, current.codes, current.grid, hessian);
    current.grid = round_grid(scale, current.grid.zero, current.grid.spec);
    measure(current, weight, hessian);
    keep_better(best, current);
  }
  if (options.sweeps > 0) {
    const Descended found = descend(weight, hessian, best.codes, best.grid, options.sweeps);
    best.codes = found.codes;
    best.grid = found.grid;
    measure(best, weight, hessian);
  }
  return best;
}

}  // namespace

std::vector<QuantizedLinear> gptq(at::TensorList weights, const at::Tensor& gram,
                                  const GptqOptions& options) {
  const FullPrecision full_precision;
  options.check();
  const std::vector<at::Tensor> checked = check_weights(weights);
  const at::Tensor weight = checked.size() == 1 ? checked.front() : at::cat(checked);
  check_gram(gram, weight.size(1));
  check_device(gram, "gram", weight, "weight");
  GptqOptions solved = options;
  solved.grid = with_global_scale(options.grid, {weight});
  const Solver solver(gram, solved);
  const int64_t dead = count_dead_channels(gram);
  std::vector<QuantizedLinear> result;
  if (solved.grid.has_nested_scales()) {  // of each weight together
    for (const at::Tensor& each : checked) {
      const GptqSolution own = refine(each, solver, solved);
      result.push_back({.codes = own.codes,
                        .grid = own.grid,
                        .loss = solver.loss(own).sum().item<double>(),
                        .damp = solver.damp(),
                        .dead_channels = dead});
    }
    return result;
  }
  const GptqSolution solution = refine(weight, solver, solved);

  const at::Tensor loss = solver.loss(solution);
  int64_t first = 0;
  for (const at::Tensor& each : checked) {
    const int64_t rows = each.size(0);
    // Clones: one result does not keep the others' memory.
    const auto own = [&](const at::Tensor& all) {
      return rows == all.size(0) ? all : all.narrow(0, first, rows).clone();
    };
    result.push_back({.codes = own(solution.codes),
                      .grid = {own(solution.grid.scale), own(solution.grid.zero), solved.grid},
                      .loss = loss.narrow(0, first, rows).sum().item<double>(),
                      .damp = solver.damp(),
                      .dead_channels = dead});
    first += rows;
  }
  return result;
}

QuantizedLinear gptq(const at::Tensor& weight, const at::Tensor& gram, const GptqOptions& options) {
  return gptq(at::TensorList(&weight, 1), gram, options).front();
}

namespace {

// Of the rows of one of the weights, whose grids are alike where they are given.
GptqGrids grids_of_rows(const GptqGrids& grids, const at::Tensor& weight) {
  const Grid* given = std::get_if<Grid>(&grids);
  if (given == nullptr) return grids;
  const auto rows = [&](const at::Tensor& all) { return all.narrow(0, 0, weight.size(0)); };
  return Grid{rows(given->scale), rows(given->zero), given->spec};
}

// One linear with an output Gram: rows in falling order of its diagonal, and back again.
QuantizedLinear solve_two_sided(const Solver& solver, const at::Tensor& weight,
                                const at::Tensor& output, GptqGrids grids,
                                const GptqOptions& options) {
  const at::Tensor order = at::argsort(output.diagonal(), /*stable=*/true, /*dim=*/0,
                                       /*descending=*/true);
  const at::Tensor feed = row_feed(output, order, options.output_damp);
  if (Grid* given = std::get_if<Grid>(&grids)) {
    given->scale = given->scale.index_select(0, order);
    given->zero = given->zero.index_select(0, order);
  }
  const GptqSolution solution = solver.run(weight.index_select(0, order), grids, feed);
  const auto back = [&](const at::Tensor& rows) {
    return at::empty_like(rows).index_copy_(0, order, rows);
  };
  Descended found{back(solution.codes),
                  {back(solution.grid.scale), back(solution.grid.zero), solution.grid.spec}};
  if (options.sweeps > 0) {
    found = descend(weight, solver.hessian(), found.codes, found.grid, options.sweeps,
                    {output, options.output_damp * mean_diagonal(output)});
  }
  return {.codes = found.codes, .grid = found.grid, .loss = {}, .damp = solver.damp()};
}

}  // namespace

std::vector<QuantizedLinear> gptq(at::TensorList weights, const at::Tensor& gram,
                                  at::TensorList outputs, const GptqOptions& options) {
  const FullPrecision full_precision;
  options.check();
  TORCH_CHECK_VALUE(outputs.size() == weights.size(), "there are ", outputs.size(),
                    " output Grams for ", weights.size(), " weights; expected one for each.");
  TORCH_CHECK_VALUE(options.refit == 0 && options.static_grid,
                    "with output Grams rows depend on each other: refit must be 0 and ",
                    "static_grid true.");
  const std::vector<at::Tensor> checked = check_weights(weights);
  check_gram(gram, checked.front().size(1));
  check_device(gram, "gram", checked.front(), "weight");
  for (size_t i = 0; i < checked.size(); ++i) {
    check_gram(outputs[i], checked[i].size(0), "output gram");
    check_device(outputs[i], "output gram", checked[i], "weight");
  }
  GptqOptions solved = options;
  solved.grid = with_global_scale(options.grid, checked);
  const Solver solver(gram, solved);
  const int64_t dead = count_dead_channels(gram);
  const GptqGrids grids = solver.grids_of(at::cat(checked));
  std::vector<QuantizedLinear> result;
  for (size_t i = 0; i < checked.size(); ++i) {
    GptqGrids own = solved.grid.has_nested_scales() ? solver.grids_of(checked[i])
                                                    : grids_of_rows(grids, checked[i]);
    result.push_back(solve_two_sided(solver, checked[i], outputs[i], std::move(own), solved));
    result.back().dead_channels = dead;
  }
  return result;
}

}  // namespace mlcalib
