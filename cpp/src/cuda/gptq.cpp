// SPDX-License-Identifier: Apache-2.0
#include <ATen/TensorOperators.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/linalg_cholesky_ex.h>
#include <ATen/ops/linalg_solve_triangular.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

#include "../grids.hpp"
#include "../interrupt.hpp"
#include "../stubs.hpp"
#include "device.hpp"
#include "terms.hpp"

namespace mlcalib {
namespace {

// Columns whose errors are fed back to all later ones in one product: as many as make it a large
// one. Within such a panel small products feed back from block to block.
constexpr int64_t kPanel = 1024;

/// The state of one solve; matrices are [row][column], columns in the order visited.
class Solve {
 public:
  explicit Solve(const GptqProblem& problem)
      : problem_(problem),
        spec_(problem.spec),
        running_(std::holds_alternative<FittedAsReached>(problem.grids)),
        rows_(problem.weight.size(0)),
        columns_(problem.weight.size(1)),
        fit_width_(fit_width(problem.spec, columns_)),
        weight_(problem.weight.index_select(1, problem.visits)),
        error_(at::empty({rows_, columns_}, weight_.options())),
        feedback_(at::zeros({rows_, columns_}, weight_.options())),
        codes_(at::empty({rows_, columns_}, weight_.options().dtype(at::kByte))),
        energy_(at::zeros({rows_}, weight_.options().dtype(at::kDouble))),
        square_(at::zeros({rows_}, weight_.options().dtype(at::kDouble))),
        group_of_(at::tensor(problem.group_of).to(weight_.device())) {
    if (const Grid* given = std::get_if<Grid>(&problem.grids)) {
      scale_ = given->scale.contiguous();
      zero_ = given->zero.to(at::kFloat).contiguous();
    } else if (!running_) {
      const auto [scale, zero] = cuda::fit(problem.weight, error_weights(0, columns_), spec_);
      const Grid held = round_grid(scale, zero, spec_);
      scale_ = held.scale;
      zero_ = held.zero.to(at::kFloat);
    } else {
      scale_ = at::empty({rows_, spec_.groups(columns_)}, weight_.options());
      zero_ = at::empty(scale_.sizes(), scale_.options());
    }
  }

  GptqSolution run() {
    // Blocks are at most as wide as the kernel's, whatever problem.block is.
    const int64_t block = std::min(problem_.block, cuda::GptqBlock::kColumns);
    for (int64_t first = 0; first < columns_;) {
      check_interrupt();
      const int64_t fit_end = std::min(columns_, (first / fit_width_ + 1) * fit_width_);
      if (running_ && first % fit_width_ == 0) fit_running(first, fit_end);
      const int64_t last =
          std::min(running_ ? fit_end : columns_, std::min(first + block, columns_));
      solve_block(first, last - first);
      first = last;
      if (first - panel_ >= kPanel && first < columns_) feed_back(first);
    }
    return {.codes = at::empty_like(codes_).index_copy_(1, problem_.visits, codes_),
            .energy = energy_,
            .square = square_,
            .grid = {scale_, spec_.has_minima() ? zero_ : zero_.to(at::kByte), spec_}};
  }

 private:
  // Columns stand in the weight's own order.
  cuda::ErrorWeights error_weights(int64_t column, int64_t count) const {
    cuda::ErrorWeights weights;
    if (spec_.range == Range::kGram) {
      weights.importance = problem_.importance.narrow(0, column, count).contiguous();
    }
    if (spec_.range == Range::kGramBlock) {
      weights.gram = problem_.gram.narrow(0, column, count).narrow(1, column, count).contiguous();
    }
    return weights;
  }

  at::Tensor factor(int64_t row, int64_t rows, int64_t column, int64_t columns) const {
    return problem_.factor.matrix.narrow(0, row, rows).narrow(1, column, columns);
  }

  // Fits groups to the weights that GPTQ holds when it gets there: w_G + D_{<G} M_{<G,G} M_GG⁻¹.
  void fit_running(int64_t first, int64_t last) {
    const int64_t count = last - first, group = problem_.group_of[first];
    at::Tensor held = weight_.narrow(1, first, count);
    if (first > 0) {
      held = held + at::linalg_solve_triangular(factor(first, count, first, count),
                                                feedback(first, count), /*upper=*/true,
                                                /*left=*/false, /*unitriangular=*/true);
    }
    const auto [scale, zero] = cuda::fit(held.contiguous(), error_weights(first, count), spec_);
    const Grid rounded = round_grid(scale, zero, spec_);
    scale_.narrow(1, group, scale.size(1)).copy_(rounded.scale);
    zero_.narrow(1, group, scale.size(1)).copy_(rounded.zero);
  }

  // Of all errors so far to `count` columns from `first` on: those of the panel by a product of
  // their own, what came before is there.
  at::Tensor feedback(int64_t first, int64_t count) const {
    const at::Tensor earlier = feedback_.narrow(1, first, count);
    if (first == panel_) return earlier;
    const int64_t solved = first - panel_;
    return at::addmm(earlier, error_.narrow(1, panel_, solved),
                     factor(panel_, solved, first, count));
  }

  // The panel ends at `first`: its errors to all columns from there on, as exact as in float32,
  // since codes are decided by them.
  void feed_back(int64_t first) {
    const int64_t solved = first - panel_, later = columns_ - first;
    const at::Tensor fed = feedback_.narrow(1, first, later);
    cuda::for_each_product(cuda::terms_of(error_.narrow(1, panel_, solved), 3),
                           cuda::terms_of(factor(panel_, solved, first, later), 3),
                           [&](const at::Tensor& error, const at::Tensor& factor) {
                             cuda::add_product(fed, error, factor);
                           });
    panel_ = first;
  }

  void solve_block(int64_t first, int64_t count) {
    const at::Tensor own = factor(first, count, first, count).contiguous();
    const at::Tensor weight = weight_.narrow(1, first, count);
    const at::Tensor target = first == 0 ? weight : weight + feedback(first, count);
    if (problem_.row_feed.defined()) {
      solve_two_sided(first, first == 0 ? target.clone() : target, own);
    } else {
      solve_rows(0, rows_, first, target, own);
    }
  }

  // Weights and targets of a block of rows move by what earlier rows changed, and are solved.
  void solve_two_sided(int64_t first, const at::Tensor& target, const at::Tensor& own) {
    const at::Tensor changes = at::empty({rows_, target.size(1)}, target.options());
    for (int64_t row = 0; row < rows_; row += kRowBlock) {
      const int64_t count = std::min(kRowBlock, rows_ - row);
      const at::Tensor moved = at::mm(problem_.row_feed.narrow(0, row, count).narrow(1, 0, row),
                                      changes.narrow(0, 0, row));
      weight_.narrow(0, row, count).narrow(1, first, target.size(1)).add_(moved);
      target.narrow(0, row, count).add_(moved);
      solve_rows(row, count, first, target.narrow(0, row, count), own);
      // W − Ŵ: the error of what the weights were moved to, less the move.
      const at::Tensor error = error_.narrow(0, row, count).narrow(1, first, target.size(1));
      changes.narrow(0, row, count).copy_(error).sub_(moved);
    }
  }

  // The rows from `row` on, of which target holds the block's columns.
  void solve_rows(int64_t row, int64_t rows, int64_t first, const at::Tensor& target,
                  const at::Tensor& own) {
    const int64_t corner = row * columns_ + first, groups = scale_.size(1);
    cuda::on_device_of(weight_, [&](cudaStream_t stream) {
      cuda::gptq_block({.weight = cuda::data(weight_) + corner,
                        .target = cuda::data(target),
                        .factor = cuda::data(own),
                        .diagonal = cuda::data(problem_.factor.diagonal) + first,
                        .scale = cuda::data(scale_) + row * groups,
                        .zero = cuda::data(zero_) + row * groups,
                        .group_of = cuda::pointer<const int64_t>(group_of_) + first,
                        .error = cuda::pointer<float>(error_) + corner,
                        .codes = cuda::pointer<uint8_t>(codes_) + corner,
                        .energy = cuda::pointer<double>(energy_) + row,
                        .square = cuda::pointer<double>(square_) + row,
                        .rows = rows,
                        .columns = target.size(1),
                        .stride = columns_,
                        .target_stride = target.stride(0),
                        .groups = groups,
                        .shape = grid_shape(spec_)},
                       stream);
    });
  }

  const GptqProblem& problem_;
  const GridSpec& spec_;
  const bool running_;
  int64_t rows_, columns_, fit_width_;
  int64_t panel_ = 0;  // its first column
  at::Tensor weight_, error_, feedback_, codes_, energy_, square_, group_of_, scale_, zero_;
};

// Cholesky of the row- and column-reversed H gives the upper factor without an inverse; its rows
// are divided by their diagonal.
Factor factorize_cuda(const at::Tensor& gram, const at::Tensor& visits, double added) {
  const at::Tensor reversed = visits.flip(0);
  at::Tensor ordered = gram.index_select(0, reversed).index_select(1, reversed);
  ordered.diagonal().add_(added);
  const auto [lower, info] = at::linalg_cholesky_ex(ordered);
  if (info.item<int64_t>() != 0) return {};
  ordered.reset();  // two matrices of the Gram's size at a time are enough
  const at::Tensor unit = lower.flip({0, 1}), diagonal = unit.diagonal().clone();
  return {unit.div_(diagonal), diagonal};
}

GptqSolution gptq_cuda(const GptqProblem& problem) { return Solve(problem).run(); }

const bool gptq_installed = factorize_stub.install(cuda::kDevice, &factorize_cuda) &&
                            gptq_stub.install(cuda::kDevice, &gptq_cuda);

}  // namespace
}  // namespace mlcalib
