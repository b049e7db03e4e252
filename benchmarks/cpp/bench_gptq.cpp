// SPDX-License-Identifier: Apache-2.0
// The GPTQ solve, against the reference algorithm in torch: a loop over columns, blocks of 128,
// `cholesky`, `cholesky_inverse`, `cholesky`.
#include <ATen/TensorOperators.h>
#include <ATen/ops/cholesky_inverse.h>
#include <ATen/ops/clamp.h>
#include <ATen/ops/linalg_cholesky.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/outer.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/round.h>
#include <ATen/ops/zeros_like.h>
#include <benchmark/benchmark.h>

#include <algorithm>
#include <mlcalib/gptq.hpp>

namespace {

struct Problem {
  at::Tensor weight, gram;
};

Problem make(int64_t rows, int64_t columns) {
  const at::Tensor x = at::randn({2 * columns, columns});
  return {at::randn({rows, columns}), at::matmul(x.t(), x)};
}

void mlcalib_gptq(benchmark::State& state) {
  const Problem problem = make(state.range(0), state.range(1));
  mlcalib::GptqOptions options;
  options.grid.group_size = 64;
  options.grid.range = mlcalib::Range::kMinMax;  // as the reference
  for (auto _ : state) {
    benchmark::DoNotOptimize(mlcalib::gptq(problem.weight, problem.gram, options));
  }
}

at::Tensor reference_gptq(const Problem& problem) {
  const mlcalib::GridSpec spec{.group_size = 64};
  const mlcalib::Grid grid = mlcalib::fit_grid(problem.weight, spec);
  at::Tensor hessian = problem.gram.clone();
  hessian.diagonal().add_(hessian.diagonal().mean() * 0.01);
  const at::Tensor inverse =
      at::linalg_cholesky(at::cholesky_inverse(at::linalg_cholesky(hessian)), /*upper=*/true);
  at::Tensor weight = problem.weight.clone(), quantized = at::zeros_like(weight);
  const at::Tensor zeros = grid.zero.to(at::kFloat);
  const int64_t columns = weight.size(1);
  for (int64_t first = 0; first < columns; first += 128) {
    const int64_t count = std::min<int64_t>(128, columns - first);
    at::Tensor block = weight.narrow(1, first, count).clone(), errors = at::zeros_like(block);
    const at::Tensor part = inverse.narrow(0, first, count).narrow(1, first, count);
    for (int64_t j = 0; j < count; ++j) {
      const int64_t group = (first + j) / 64;
      const at::Tensor w = block.select(1, j), s = grid.scale.select(1, group),
                       z = zeros.select(1, group);
      const at::Tensor q = s * (at::clamp(at::round(w / s) + z, 0, 15) - z);
      quantized.select(1, first + j).copy_(q);
      const at::Tensor error = (w - q) / part[j][j];
      block.narrow(1, j, count - j).sub_(at::outer(error, part[j].narrow(0, j, count - j)));
      errors.select(1, j).copy_(error);
    }
    const int64_t rest = first + count;
    if (rest < columns) {
      weight.narrow(1, rest, columns - rest)
          .sub_(
              at::matmul(errors, inverse.narrow(0, first, count).narrow(1, rest, columns - rest)));
    }
  }
  return quantized;
}

void naive_gptq(benchmark::State& state) {
  const Problem problem = make(state.range(0), state.range(1));
  for (auto _ : state) benchmark::DoNotOptimize(reference_gptq(problem));
}

#define MLCALIB_SHAPES                \
  ->Args({576, 1536})                 \
      ->Args({1536, 576})             \
      ->Args({4096, 4096})            \
      ->Unit(benchmark::kMillisecond) \
      ->UseRealTime()
BENCHMARK(naive_gptq) MLCALIB_SHAPES;
BENCHMARK(mlcalib_gptq) MLCALIB_SHAPES;

}  // namespace
