// SPDX-License-Identifier: Apache-2.0
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/argsort.h>
#include <ATen/ops/bincount.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <mlcalib/awq.hpp>
#include <set>

#include "check.hpp"
#include "cholesky.hpp"
#include "full_precision.hpp"
#include "gram.hpp"
#include "grids.hpp"
#include "interrupt.hpp"
#include "stubs.hpp"

namespace mlcalib {

void AwqOptions::check() const {
  grid.check();
  TORCH_CHECK_VALUE(grid.range != Range::kGramBlock, "range is 'gram_block', expected 'minmax', ",
                    "'mse' or 'gram' for the scale search; clip after it with awq_clip.");
  TORCH_CHECK_VALUE(!grid.per_tensor, "per_tensor is true, expected false: the search fits each ",
                    "row by itself; scale channels by smoothquant instead.");
  TORCH_CHECK_VALUE(points > 0, "points is ", points, ", expected a positive number of exponents.");
  TORCH_CHECK_VALUE(exact > 0, "exact is ", exact, ", expected a positive number of candidates.");
  TORCH_CHECK_VALUE(sketch > 0, "sketch is ", sketch, ", expected a positive number of rows.");
}

namespace {

constexpr double kSmallestScale = 1e-4;  // as the authors' code clamps
constexpr double kSketchDamp = 1e-5;     // enough for a factor; the diagonal is put right after

void check_mean(const at::Tensor& mean, int64_t channels) {
  TORCH_CHECK_VALUE(mean.dim() == 1 && mean.size(0) == channels, "mean has shape ", mean.sizes(),
                    ", expected [", channels, "], the mean |x| of each input channel.");
  check_finite(mean, "mean");
  TORCH_CHECK_VALUE(mean.min().item<double>() >= 0, "mean goes down to ", mean.min().item<double>(),
                    ", expected a mean of |x|, 0 or more.");
}

// The mean over the channels of each source, channel by channel.
at::Tensor pool(const at::Tensor& mean, const at::Tensor& source_of) {
  TORCH_CHECK_VALUE(source_of.sizes() == mean.sizes() && source_of.scalar_type() == at::kLong &&
                        source_of.min().item<int64_t>() >= 0,
                    "source_of is ", source_of.scalar_type(), " ", source_of.sizes(),
                    ", expected int64 ", mean.sizes(), ": the source's channel of each channel.");
  const at::Tensor sums = at::bincount(source_of, mean);
  const at::Tensor counts = at::bincount(source_of).clamp_min(1);
  return (sums / counts).index_select(0, source_of);
}

// S [rows, cols] with E[SᵀS] = G: Gaussian combinations of the rows of a square root of G, or
// all of these where they are no more.
at::Tensor sketch_of(const at::Tensor& gram, int64_t rows) {
  const Cholesky factor =
      damped_cholesky(gram.clone(at::MemoryFormat::Contiguous), mean_diagonal(gram), kSketchDamp);
  if (rows >= gram.size(0)) return factor.lower.t().contiguous();
  constexpr uint64_t kSeed = 0;  // every search draws the same: results repeat
  const at::Tensor normal =
      at::randn({rows, gram.size(0)}, at::detail::createCPUGenerator(kSeed), at::kFloat)
          .to(gram.device());
  return at::mm(normal, factor.lower.t()).div_(std::sqrt(static_cast<double>(rows)));
}

struct Problem {
  at::Tensor weight;  ///< all weights of a group, float32 [rows, cols]
  at::Tensor gram;
};

std::vector<Problem> check_groups(const std::vector<LinearGroup>& groups, int64_t channels) {
  TORCH_CHECK_VALUE(!groups.empty(), "groups is empty, expected linears to scale.");
  std::vector<Problem> problems;
  for (const LinearGroup& group : groups) {
    TORCH_CHECK_VALUE(!group.weights.empty(), "a group has no weights, expected at least one.");
    std::vector<at::Tensor> weights;
    for (const at::Tensor& weight : group.weights) {
      weights.push_back(check_weight(weight));
      TORCH_CHECK_VALUE(weight.size(1) == channels, "weight has shape ", weight.sizes(),
                        " but mean has ", channels, " channels; linears that are scaled together ",
                        "read the same input.");
      check_device(weight, "weight", group.gram, "gram");
    }
    check_gram(group.gram, channels);
    check_device(group.gram, "a gram", groups.front().gram, "the first");
    problems.push_back({weights.size() == 1 ? weights.front() : at::cat(weights), group.gram});
  }
  return problems;
}

at::Tensor estimate(const Problem& problem, const at::Tensor& candidates,
                    const AwqOptions& options) {
  const at::Tensor sketch = sketch_of(problem.gram, std::min(options.sketch, problem.gram.size(0)));
  const at::Tensor diagonal = problem.gram.diagonal().contiguous();
  return awq_scores_stub(
      problem.weight.device().type(),
      {.weight = problem.weight,
       .candidates = candidates,
       .importance = options.grid.range == Range::kGram ? diagonal : at::Tensor(),
       .sketch = sketch,
       .missing = diagonal - sketch.square().sum(0),
       .spec = options.grid});
}

// tr(D G Dᵀ) = ⟨DᵀD, G⟩ with D = W − Q(W·s)/s, on the grid that a checkpoint would hold.
double exact_loss(const Problem& problem, const at::Tensor& scale, const GridSpec& asked) {
  const at::DeviceType device = problem.weight.device().type();
  const at::Tensor scaled = problem.weight * scale;
  const at::Tensor importance =
      asked.range == Range::kGram ? problem.gram.diagonal() / scale.square() : at::Tensor();
  const GridSpec spec = with_global_scale(asked, {scaled});
  const auto [step, zero] = fit_grid_stub(device, scaled, importance, at::Tensor(), spec);
  const Grid grid = round_grid(step, zero, spec);
  const at::Tensor quantized = dequantize_stub(device, quantize_stub(device, scaled, grid), grid);
  const at::Tensor error = (scaled - quantized).div_(scale);
  return dot_stub(device, gram_of(error), problem.gram.contiguous());
}

}  // namespace

at::Tensor awq_candidates(const at::Tensor& mean, int64_t points,
                          const std::optional<at::Tensor>& source_of) {
  TORCH_CHECK_VALUE(mean.dim() == 1, "mean has shape ", mean.sizes(), ", expected [channels].");
  check_mean(mean, mean.size(0));
  // On the CPU wherever the mean is: the same candidates for every device.
  const at::Tensor each = mean.to(at::kCPU, at::kDouble);
  const at::Tensor shared = source_of ? pool(each, source_of->to(at::kCPU)) : each;
  const at::Tensor alive = shared > 0;
  std::vector<at::Tensor> candidates;
  for (int64_t point = 0; point < points; ++point) {
    const double exponent = static_cast<double>(point) / static_cast<double>(points);
    const at::Tensor power =
        at::where(alive, shared.pow(exponent).clamp_min(kSmallestScale), at::ones_like(shared));
    const at::Tensor living = power.masked_select(alive);
    const double middle =
        living.numel() == 0 ? 1.0
                            : std::sqrt(living.max().item<double>() * living.min().item<double>());
    candidates.push_back(at::where(alive, power / middle, at::ones_like(power)));
  }
  return at::stack(candidates).to(mean.device(), at::kFloat);
}

AwqScale awq_scale(const std::vector<LinearGroup>& groups, const at::Tensor& mean,
                   const AwqOptions& options, const std::optional<at::Tensor>& source_of) {
  const FullPrecision full_precision;
  options.check();
  check_mean(mean, mean.size(-1));
  const std::vector<Problem> problems = check_groups(groups, mean.size(0));
  const at::Tensor candidates =
      awq_candidates(mean, options.points, source_of).to(problems.front().gram.device());

  at::Tensor scores = at::zeros({options.points}, at::kDouble);
  for (const Problem& problem : problems) scores += estimate(problem, candidates, options);

  const at::Tensor order = at::argsort(scores);
  std::set<int64_t> chosen{0};  // no scale
  for (int64_t i = 0; i < std::min(options.exact, options.points); ++i) {
    chosen.insert(order[i].item<int64_t>());
  }
  AwqScale best{.scale = {}, .scores = scores};
  for (const int64_t point : chosen) {
    double loss = 0;
    for (const Problem& problem : problems) {
      check_interrupt();
      loss += exact_loss(problem, candidates[point], options.grid);
    }
    if (point == 0) best.unscaled = loss;
    if (point == 0 || loss < best.loss) {
      best.loss = loss;
      best.scale = candidates[point];
      best.exponent = static_cast<double>(point) / static_cast<double>(options.points);
    }
  }
  return best;
}

Grid awq_clip(const at::Tensor& weight, const at::Tensor& gram, const GridSpec& spec) {
  GridSpec clipped = spec;
  clipped.range = Range::kGramBlock;
  return fit_grid(weight, clipped, gram);
}

}  // namespace mlcalib
