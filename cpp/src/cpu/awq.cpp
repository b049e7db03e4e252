// SPDX-License-Identifier: Apache-2.0
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <vector>

#include "../grids.hpp"
#include "../interrupt.hpp"
#include "../stubs.hpp"
#include "fit_panel.hpp"
#include "kernels/kernels.hpp"
#include "panel.hpp"

namespace mlcalib {
namespace {

// Rows whose errors are held at a time, in tiles: not those of the whole weight.
constexpr int64_t kChunkTiles = 64;
// Columns that are summed one after the other; what they sum to is added up in float64. So a few
// tiles of rows are work for many threads, and the bits do not depend on how many these are.
constexpr int64_t kStripColumns = 1024;

/// The scores of one weight's candidates.
class Search {
 public:
  explicit Search(const AwqProblem& problem)
      : problem_(problem),
        shape_(grid_shape(problem.spec)),
        columns_(problem.weight.size(1)),
        width_(group_width(problem.spec, columns_)),
        strip_(std::max<int64_t>(kStripColumns / width_, 1) * width_),
        weight_(cpu::to_panel<float>(problem.weight)),
        error_(at::empty({columns_, std::min(kChunkTiles, weight_.size(0)) * cpu::kRowTile},
                         weight_.options())) {}

  double score(const at::Tensor& factor) {
    factor_ = factor;
    inverse_ = factor.reciprocal();
    if (problem_.importance.defined()) importance_ = problem_.importance * inverse_.square();
    double total = 0;
    const int64_t tiles = weight_.size(0);
    for (int64_t tile = 0; tile < tiles; tile += kChunkTiles) {
      check_interrupt();
      total += score_chunk(tile, std::min(kChunkTiles, tiles - tile));
    }
    return total;
  }

 private:
  double score_chunk(int64_t first, int64_t tiles) {
    const int64_t strips = divide_up(columns_, strip_);
    const at::Tensor sums = at::zeros({strips, tiles * cpu::kRowTile}, weight_.options());
    at::parallel_for(0, tiles * strips, 1, [&](int64_t begin, int64_t end) {
      std::vector<float> scaled(std::min(width_, columns_) * cpu::kRowTile);
      for (int64_t next = begin; next < end; ++next) {
        const int64_t tile = next / strips, strip = next % strips;
        float* sum = sums.data_ptr<float>() + strip * sums.size(1);
        const int64_t last = std::min((strip + 1) * strip_, columns_);
        for (int64_t group = strip * strip_; group < last; group += width_) {
          round_group(group, first + tile, tile * cpu::kRowTile, scaled.data(), sum);
        }
      }
    });
    const at::Tensor errors = error_.narrow(1, 0, tiles * cpu::kRowTile);
    const at::Tensor sketched = at::mm(problem_.sketch, errors);
    return sketched.square_().sum(at::kDouble).item<double>() +
           sums.sum(at::kDouble).item<double>();
  }

  // A tile of the weight, which stands from row `at` on in the chunk.
  void round_group(int64_t first, int64_t tile, int64_t at, float* scaled, float* sums) const {
    const auto from = [first](const at::Tensor& tensor) {
      return tensor.defined() ? tensor.const_data_ptr<float>() + first : nullptr;
    };
    cpu::kernels().awq->round_scaled(
        {.weight = weight_.const_data_ptr<float>() + (tile * columns_ + first) * cpu::kRowTile,
         .factor = from(factor_),
         .inverse = from(inverse_),
         .importance = from(importance_),
         .square = from(problem_.missing),
         .scaled = scaled,
         .error = error_.data_ptr<float>() + first * error_.size(1) + at,
         .sum = sums + at,
         .columns = std::min(width_, columns_ - first),
         .error_stride = error_.size(1)},
        shape_);
  }

  const AwqProblem& problem_;
  GridShape shape_;
  int64_t columns_, width_, strip_;
  at::Tensor weight_, error_, factor_, inverse_, importance_;
};

at::Tensor awq_scores_cpu(const AwqProblem& problem) {
  const int64_t points = problem.candidates.size(0);
  at::Tensor scores = at::empty({points}, at::kDouble);
  Search search(problem);
  for (int64_t point = 0; point < points; ++point) {
    scores[point] = search.score(problem.candidates[point]);
  }
  return scores;
}

const bool awq_installed = awq_scores_stub.install(at::kCPU, &awq_scores_cpu);

}  // namespace
}  // namespace mlcalib
