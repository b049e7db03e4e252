// SPDX-License-Identifier: Apache-2.0
// The Gram of 2,048 tokens against the naive way of every tool, H.addmm_(x.T, x) in float32.
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>
#include <benchmark/benchmark.h>

#include <mlcalib/runtime.hpp>
#include <mlcalib/statistic.hpp>

namespace {

constexpr int64_t kTokens = 2048;

void count_gram(benchmark::State& state) {
  // Of the full product, so that both ways are counted alike.
  const double operations = 2.0 * kTokens * static_cast<double>(state.range(0) * state.range(0));
  state.counters["FLOP/s"] =
      benchmark::Counter(operations, benchmark::Counter::kIsIterationInvariantRate);
}

void mlcalib_gram(benchmark::State& state, at::ScalarType type) {
  const at::Tensor x = at::randn({kTokens, state.range(0)}).to(type);
  const auto statistic = mlcalib::make_statistic("gram", state.range(0));
  for (auto _ : state) statistic->update(x);
  count_gram(state);
  state.SetLabel(mlcalib::isa());  // the best of this machine, or MLCALIB_ISA
}

void naive_gram(benchmark::State& state, at::ScalarType type) {
  const at::Tensor x = at::randn({kTokens, state.range(0)}).to(type);
  at::Tensor gram = at::zeros({state.range(0), state.range(0)});
  for (auto _ : state) {
    const at::Tensor rows = x.to(at::kFloat);
    gram.addmm_(rows.t(), rows);
  }
  count_gram(state);
}

#define GRAM_SIZES ->Arg(576)->Arg(1536)->Arg(4096)->Unit(benchmark::kMillisecond)->UseRealTime()
BENCHMARK_CAPTURE(naive_gram, float32, at::kFloat) GRAM_SIZES;
BENCHMARK_CAPTURE(mlcalib_gram, float32, at::kFloat) GRAM_SIZES;
BENCHMARK_CAPTURE(naive_gram, bfloat16, at::kBFloat16) GRAM_SIZES;
BENCHMARK_CAPTURE(mlcalib_gram, bfloat16, at::kBFloat16) GRAM_SIZES;
BENCHMARK_CAPTURE(naive_gram, float16, at::kHalf) GRAM_SIZES;
BENCHMARK_CAPTURE(mlcalib_gram, float16, at::kHalf) GRAM_SIZES;

}  // namespace
