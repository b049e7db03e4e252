// SPDX-License-Identifier: Apache-2.0
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linalg_solve_triangular.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <vector>

#include "../round_grid.hpp"
#include "../stubs.hpp"
#include "fit_panel.hpp"
#include "kernels/kernels.hpp"
#include "panel.hpp"

namespace mlcalib {
namespace {

/// The state of one solve; panels are [column][row], columns in the order visited.
class Solve {
 public:
  explicit Solve(const GptqProblem& problem)
      : problem_(problem),
        spec_(problem.options.grid),
        rows_(problem.weight.size(0)),
        columns_(problem.weight.size(1)),
        weight_(cpu::to_panel(problem.weight)),
        error_(at::zeros(weight_.sizes(), weight_.options())),
        codes_(at::empty(weight_.sizes(), weight_.options().dtype(at::kByte))),
        energy_(at::zeros({weight_.size(1)}, weight_.options().dtype(at::kDouble))),
        square_(at::zeros({weight_.size(1)}, weight_.options().dtype(at::kDouble))) {
    if (problem.options.static_grid) {
      scale_ = cpu::to_panel(problem.grid.scale);
      zero_ = cpu::to_panel(problem.grid.zero);
      scale_.narrow(1, rows_, scale_.size(1) - rows_).fill_(1);  // padding must divide
    } else {
      scale_ = at::empty({spec_.groups(columns_), weight_.size(1)}, weight_.options());
      zero_ = at::empty(scale_.sizes(), scale_.options());
    }
  }

  GptqSolution run() {
    for (int64_t first = 0; first < columns_;) {
      const int64_t group_end = end_of_group(first);
      if (!problem_.options.static_grid && starts_group(first)) fit_running(first, group_end);
      const int64_t block_end = first + problem_.options.block;
      const int64_t last = std::min(problem_.options.static_grid ? columns_ : group_end,
                                    std::min(block_end, columns_));
      solve_block(first, last - first);
      first = last;
    }
    return {.codes = cpu::from_panel(codes_, rows_),
            .energy = energy_.narrow(0, 0, rows_),
            .square = square_.narrow(0, 0, rows_),
            .grid = {cpu::from_panel(scale_, rows_), cpu::from_panel(zero_, rows_).to(at::kByte),
                     spec_}};
  }

 private:
  bool starts_group(int64_t column) const {
    return column == 0 || problem_.group_of[column] != problem_.group_of[column - 1];
  }

  // In natural order groups are consecutive.
  int64_t end_of_group(int64_t column) const {
    return spec_.group_size == kWholeRow
               ? columns_
               : std::min(columns_, (problem_.group_of[column] + 1) * spec_.group_size);
  }

  // (D_{<first} M_{<first, first…})ᵀ for `count` columns.
  at::Tensor feedback(int64_t first, int64_t count) const {
    return at::mm(problem_.factor.narrow(0, 0, first).narrow(1, first, count).t(),
                  error_.narrow(0, 0, first));
  }

  // Fits the group to the weights that GPTQ holds when it gets there: w_G + D_{<G} M_{<G,G} M_GG⁻¹.
  void fit_running(int64_t first, int64_t last) {
    const int64_t count = last - first, group = problem_.group_of[first];
    at::Tensor held = weight_.narrow(0, first, count);
    if (first > 0) {
      const at::Tensor unit = problem_.factor.narrow(0, first, count).narrow(1, first, count);
      held = held + at::linalg_solve_triangular(unit.t(), feedback(first, count), /*upper=*/false,
                                                /*left=*/true, /*unitriangular=*/true);
    }
    const at::Tensor scale = scale_[group], zero = zero_[group];
    cpu::ErrorWeights weights;
    if (spec_.range == Range::kGram)
      weights.importance = problem_.importance.narrow(0, first, count);
    if (spec_.range == Range::kGramBlock) {
      weights.gram = problem_.gram.narrow(0, first, count).narrow(1, first, count);
    }
    zero.zero_();
    scale.fill_(1);
    cpu::fit_panel(held.contiguous(), weights, spec_, rows_, scale, zero);
    scale.copy_(round_grid(scale, zero, spec_).scale);
  }

  void solve_block(int64_t first, int64_t count) {
    const at::Tensor weight = weight_.narrow(0, first, count);
    const at::Tensor target =
        first == 0
            ? weight
            : at::addmm(weight, problem_.factor.narrow(0, 0, first).narrow(1, first, count).t(),
                        error_.narrow(0, 0, first));
    const at::Tensor factor =
        problem_.factor.narrow(0, first, count).narrow(1, first, count).t().contiguous();
    const int64_t stride = weight_.size(1);
    at::parallel_for(0, cpu::row_tiles(rows_), 1, [&](int64_t begin, int64_t end) {
      const int64_t r = begin * cpu::kRowTile;
      std::vector<const float*> scale, zero;
      for (int64_t k = first; k < first + count; ++k) {
        const int64_t at = problem_.group_of[k] * stride + r;
        scale.push_back(scale_.const_data_ptr<float>() + at);
        zero.push_back(zero_.const_data_ptr<float>() + at);
      }
      cpu::kernels().gptq_block({.weight = weight.const_data_ptr<float>() + r,
                                 .target = target.const_data_ptr<float>() + r,
                                 .factor = factor.const_data_ptr<float>(),
                                 .diagonal = problem_.diagonal.const_data_ptr<float>() + first,
                                 .scale = scale.data(),
                                 .zero = zero.data(),
                                 .error = error_.data_ptr<float>() + first * stride + r,
                                 .codes = codes_.data_ptr<uint8_t>() + first * stride + r,
                                 .energy = energy_.data_ptr<double>() + r,
                                 .square = square_.data_ptr<double>() + r,
                                 .columns = count,
                                 .rows = (end - begin) * cpu::kRowTile,
                                 .stride = stride,
                                 .max_code = static_cast<float>(spec_.max_code())});
    });
  }

  const GptqProblem& problem_;
  const GridSpec& spec_;
  int64_t rows_, columns_;
  at::Tensor weight_, error_, codes_, energy_, square_, scale_, zero_;
};

GptqSolution gptq_cpu(const GptqProblem& problem) { return Solve(problem).run(); }

const bool installed = gptq_stub.install(at::kCPU, &gptq_cpu);

}  // namespace
}  // namespace mlcalib
