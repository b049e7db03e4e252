// SPDX-License-Identifier: Apache-2.0
// GPTQ's Cholesky factorisation, ordering included, against LAPACK's without it.
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/linalg_cholesky_ex.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/randn.h>
#include <benchmark/benchmark.h>

#include "stubs.hpp"

namespace {

at::Tensor gram_of(int64_t channels) {
  const at::Tensor x = at::randn({channels + 64, channels});
  at::Tensor gram = at::matmul(x.t(), x);
  gram.diagonal().add_(0.01 * static_cast<double>(channels));
  return gram;
}

void count_factor(benchmark::State& state) {
  const auto channels = static_cast<double>(state.range(0));
  state.counters["FLOP/s"] = benchmark::Counter(channels * channels * channels / 3,
                                                benchmark::Counter::kIsIterationInvariantRate);
}

void mlcalib_factor(benchmark::State& state) {
  const at::Tensor gram = gram_of(state.range(0));
  const at::Tensor visits = at::arange(state.range(0));
  for (auto _ : state) {
    benchmark::DoNotOptimize(mlcalib::factorize_stub(at::kCPU, gram, visits, 0));
  }
  count_factor(state);
}

void lapack_factor(benchmark::State& state) {
  const at::Tensor gram = gram_of(state.range(0));
  for (auto _ : state) benchmark::DoNotOptimize(at::linalg_cholesky_ex(gram));
  count_factor(state);
}

#define FACTOR_SIZES \
  ->Arg(576)->Arg(1536)->Arg(4096)->Arg(14336)->Unit(benchmark::kMillisecond)->UseRealTime()
BENCHMARK(lapack_factor) FACTOR_SIZES;
BENCHMARK(mlcalib_factor) FACTOR_SIZES;

}  // namespace
