// SPDX-License-Identifier: Apache-2.0
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/argsort.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty_like.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <mlcalib/gptq.hpp>

#include "check.hpp"
#include "cholesky.hpp"
#include "round_grid.hpp"
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
  TORCH_CHECK_VALUE(static_grid || order == Order::kNatural,
                    "static_grid=False fits grids as groups are reached, which needs ",
                    "order='natural'; with order='activation' grids are static.");
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

std::vector<at::Tensor> check_weights(at::TensorList weights) {
  TORCH_CHECK_VALUE(!weights.empty(), "weights is empty, expected at least one matrix.");
  std::vector<at::Tensor> checked;
  for (const at::Tensor& weight : weights) {
    checked.push_back(check_weight(weight));
    TORCH_CHECK_VALUE(checked.back().size(1) == checked.front().size(1), "weights have ",
                      checked.front().size(1), " and ", checked.back().size(1),
                      " input channels; linears solved together read the same input.");
    check_device(checked.back(), "a weight", checked.front(), "the first");
  }
  return checked;
}

Grid rows_of(const Grid& grid, int64_t first, int64_t count) {
  return {grid.scale.narrow(0, first, count).clone(), grid.zero.narrow(0, first, count).clone(),
          grid.spec};
}

}  // namespace

std::vector<QuantizedLinear> gptq(at::TensorList weights, const at::Tensor& gram,
                                  const GptqOptions& options) {
  options.check();
  const std::vector<at::Tensor> checked = check_weights(weights);
  const at::Tensor weight = checked.size() == 1 ? checked.front() : at::cat(checked);
  check_gram(gram, weight.size(1));
  check_device(gram, "gram", weight, "weight");
  const double mean = mean_diagonal(gram);
  const at::Tensor importance = gram.diagonal() + options.damp * mean;
  at::Tensor damped;  // H; a copy of the Gram's size, so only where it has a say
  if (options.grid.range == Range::kGramBlock) {
    damped = gram.clone(at::MemoryFormat::Contiguous);
    damped.diagonal().copy_(importance);
  }

  // Static grids belong to the weight's own columns; the solve sees columns in the order visited.
  const at::DeviceType device = weight.device().type();
  Grid grid;
  if (options.static_grid) {
    const auto [scale, zero] = fit_grid_stub(
        device, weight, options.grid.range == Range::kGram ? importance : at::Tensor(), damped,
        options.grid);
    grid = round_grid(scale, zero, options.grid);
  }
  const at::Tensor visits = options.order == Order::kActivation
                                ? at::argsort(importance, /*stable=*/true, /*dim=*/0,
                                              /*descending=*/true)
                                : at::arange(weight.size(1), importance.options().dtype(at::kLong));
  // Cholesky of the row- and column-reversed H gives the upper factor without an inverse.
  const at::Tensor reversed_visits = visits.flip(0);
  const Cholesky factor = damped_cholesky(
      gram.index_select(0, reversed_visits).index_select(1, reversed_visits), mean, options.damp);
  const at::Tensor upper = factor.lower.flip({0, 1});
  const at::Tensor diagonal = upper.diagonal().contiguous();
  const GptqSolution solution = gptq_stub(device, {.weight = weight.index_select(1, visits),
                                                   .factor = upper / diagonal,
                                                   .diagonal = diagonal,
                                                   .importance = importance.index_select(0, visits),
                                                   .gram = damped,
                                                   .group_of = groups_of(visits, options.grid),
                                                   .grid = grid,
                                                   .options = options});
  const at::Tensor codes = at::empty_like(solution.codes).index_copy_(1, visits, solution.codes);

  // tr(D G Dᵀ) = tr(D H Dᵀ) − λ‖D‖²: both come out of the solve, row by row.
  const at::Tensor loss = solution.energy - solution.square * (factor.damp * mean);
  const int64_t dead = count_dead_channels(gram);
  std::vector<QuantizedLinear> result;
  int64_t first = 0;
  for (const at::Tensor& each : checked) {
    const int64_t rows = each.size(0);
    result.push_back({.codes = codes.narrow(0, first, rows).clone(),
                      .grid = rows_of(solution.grid, first, rows),
                      .loss = loss.narrow(0, first, rows).sum().item<double>(),
                      .damp = factor.damp,
                      .dead_channels = dead});
    first += rows;
  }
  return result;
}

QuantizedLinear gptq(const at::Tensor& weight, const at::Tensor& gram, const GptqOptions& options) {
  return gptq(at::TensorList(&weight, 1), gram, options).front();
}

}  // namespace mlcalib
