// SPDX-License-Identifier: Apache-2.0
#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

#include "../grids.hpp"
#include "../interrupt.hpp"
#include "../stubs.hpp"
#include "device.hpp"

namespace mlcalib {
namespace {

// Errors held at a time: rows enough for the matrix product, not the whole weight.
constexpr int64_t kErrors = int64_t{1} << 26;

/// The scores of one weight's candidates; they stay on the device until the last is known.
class Search {
 public:
  explicit Search(const AwqProblem& problem)
      : problem_(problem),
        rows_(problem.weight.size(0)),
        columns_(problem.weight.size(1)),
        chunk_(std::clamp<int64_t>(kErrors / columns_, 1, rows_)),
        weight_(problem.weight.contiguous()),
        square_(problem.missing.contiguous()),
        error_(at::empty({chunk_, columns_}, weight_.options())),
        sum_(at::empty({chunk_, problem.spec.groups(columns_)}, weight_.options())) {}

  /// Adds the candidate's score to `total`, float64 without dimensions.
  void score(const at::Tensor& candidate, const at::Tensor& total) {
    const at::Tensor factor = candidate.contiguous(), inverse = factor.reciprocal();
    const at::Tensor importance =
        problem_.importance.defined() ? problem_.importance * inverse.square() : at::Tensor();
    for (int64_t first = 0; first < rows_; first += chunk_) {
      check_interrupt();
      const int64_t rows = std::min(chunk_, rows_ - first);
      cuda::on_device_of(weight_, [&](cudaStream_t stream) {
        cuda::round_scaled({.weight = cuda::data(weight_) + first * columns_,
                            .factor = cuda::data(factor),
                            .inverse = cuda::data(inverse),
                            .importance = cuda::data(importance),
                            .square = cuda::data(square_),
                            .rows = rows,
                            .columns = columns_,
                            .width = group_width(problem_.spec, columns_),
                            .shape = grid_shape(problem_.spec),
                            .error = cuda::pointer<float>(error_),
                            .sum = cuda::pointer<float>(sum_)},
                           stream);
      });
      const at::Tensor sketched = at::mm(error_.narrow(0, 0, rows), problem_.sketch.t());
      total.add_(sketched.square_().sum(at::kDouble));
      total.add_(sum_.narrow(0, 0, rows).sum(at::kDouble));
    }
  }

 private:
  const AwqProblem& problem_;
  int64_t rows_, columns_, chunk_;
  at::Tensor weight_, square_, error_, sum_;
};

at::Tensor awq_scores_cuda(const AwqProblem& problem) {
  const int64_t points = problem.candidates.size(0);
  const at::Tensor scores = at::zeros({points}, problem.weight.options().dtype(at::kDouble));
  Search search(problem);
  for (int64_t point = 0; point < points; ++point) {
    search.score(problem.candidates[point], scores[point]);
  }
  return scores.to(at::kCPU);
}

const bool awq_installed = awq_scores_stub.install(cuda::kDevice, &awq_scores_cuda);

}  // namespace
}  // namespace mlcalib
