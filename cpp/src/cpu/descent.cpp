// SPDX-License-Identifier: Apache-2.0
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <vector>

#include "../grids.hpp"
#include "../interrupt.hpp"
#include "../scale_step.hpp"
#include "../stubs.hpp"
#include "kernels/kernels.hpp"
#include "panel.hpp"

namespace mlcalib {
namespace {

using cpu::kRowTile;
constexpr int64_t kColumns = 2 * kRowTile;  // of a block: their gradients are computed together

/// Columns are padded to whole tiles: products read a few of them at a time, from the first of a
/// block or a group on.
at::Tensor padded(const at::Tensor& matrix, int64_t width) {
  const int64_t columns = matrix.size(1), rows = cpu::kernels().factor->rows;
  const int64_t read = columns + (width % rows == 0 ? 0 : rows);
  const int64_t missing = divide_up(read, kRowTile) * kRowTile - columns;
  return missing == 0 ? matrix.contiguous() : at::constant_pad_nd(matrix, {0, missing});
}

/// The state of one descent. Panels are [tile][column][kRowTile].
class Descent {
 public:
  explicit Descent(const DescentProblem& problem)
      : problem_(problem),
        kernels_(cpu::kernels()),
        rows_(problem.codes.size(0)),
        columns_(problem.codes.size(1)),
        width_(group_width(problem.grid.spec, columns_)),
        hessian_(padded(problem.hessian, width_)),
        error_(padded(problem.error, width_)),
        output_(problem.output.defined() ? cpu::to_panel<float>(problem.output.contiguous())
                                         : at::Tensor()),
        codes_(cpu::to_panel<uint8_t, uint8_t>(problem.codes.contiguous())),
        scale_(cpu::scale_panel(problem.grid.scale)),
        zero_(cpu::to_panel<float>(problem.grid.zero.to(at::kFloat).contiguous())),
        felt_(at::empty({columns_, kRowTile}, at::kFloat)),
        gradient_(at::empty({std::max(kColumns, width_), kRowTile}, at::kFloat)),
        units_(at::zeros(gradient_.sizes(), at::kFloat)),
        products_(at::empty(gradient_.sizes(), at::kFloat)),
        change_(at::empty({kColumns, kRowTile}, at::kFloat)),
        own_(at::empty({kRowTile, kRowTile}, at::kFloat)),
        diagonal_(kRowTile),
        group_(columns_) {
    for (int64_t k = 0; k < columns_; ++k) group_[k] = k / width_;
    if (!output_.defined()) return;
    float* output = output_.data_ptr<float>();
    for (int64_t i = 0; i < rows_; ++i) {
      output[(i / kRowTile * rows_ + i) * kRowTile + i % kRowTile] += problem.output_added;
    }
  }

  Descended run() {
    for (int64_t sweep = 0; sweep < problem_.sweeps; ++sweep) {
      bool changed = false;
      for (int64_t tile = 0; tile < codes_.size(0); ++tile) {
        check_interrupt();
        changed |= sweep_tile(tile, sweep == 0);
      }
      if (!changed) break;
    }
    const Grid& grid = problem_.grid;
    return {cpu::from_panel<uint8_t, uint8_t>(codes_, rows_),
            {cpu::from_panel<float, float>(scale_, rows_), grid.zero, grid.spec}};
  }

 private:
  bool sweep_tile(int64_t tile, bool scales) {
    take_own(tile);
    take_felt(tile);
    bool changed = scales && has_free_scales(problem_.grid.spec) && step_groups(tile);
    for (int64_t first = 0; first < columns_; first += kColumns) {
      const int64_t count = std::min(kColumns, columns_ - first);
      multiply(hessian_, first, count, felt_.const_data_ptr<float>(), columns_, gradient_);
      changed |= descend(tile, first, count);
    }
    return changed;
  }

  // O between the rows of a tile; those of the padding are alone.
  void take_own(int64_t tile) {
    const int64_t count = std::min(kRowTile, rows_ - tile * kRowTile);
    own_.zero_();
    if (output_.defined()) {
      own_.narrow(0, 0, count).copy_(output_[tile].narrow(0, tile * kRowTile, count));
    } else {
      own_.diagonal().fill_(1);
    }
    const float* own = own_.const_data_ptr<float>();
    for (int64_t i = 0; i < kRowTile; ++i) diagonal_[i] = i < count ? own[i * kRowTile + i] : 1;
  }

  // O D of a tile.
  void take_felt(int64_t tile) {
    if (output_.defined()) {
      const float* output = output_.const_data_ptr<float>() + tile * rows_ * kRowTile;
      multiply(error_, 0, columns_, output, rows_, felt_);
      return;
    }
    const int64_t first = tile * kRowTile, count = std::min(kRowTile, rows_ - first);
    felt_.zero_();
    cpu::transpose(error_.const_data_ptr<float>() + first * error_.size(1), error_.size(1), count,
                   columns_, felt_.data_ptr<float>(), kRowTile);
  }

  // out [count][kRowTile] = leftᵀ right, of the columns of left [steps, columns] from `first` on
  // and right [steps][kRowTile].
  void multiply(const at::Tensor& left, int64_t first, int64_t count, const float* right,
                int64_t steps, const at::Tensor& out) const {
    const int64_t rows = kernels_.factor->rows, stride = left.size(1);
    const float* from = left.const_data_ptr<float>() + first;
    float* to = out.data_ptr<float>();
    at::parallel_for(0, divide_up(count, rows), 1, [&](int64_t begin, int64_t end) {
      for (int64_t m = begin * rows; m < std::min(end * rows, count); m += rows) {
        const int64_t columns = std::min(rows, count - m);
        std::fill(to + m * kRowTile, to + (m + columns) * kRowTile, 0.0F);
        kernels_.factor->add_product(from + m, stride, right, steps, 1, columns, to + m * kRowTile);
      }
    });
  }

  // Groups come one after the other: the scales of each become the best that they can be.
  bool step_groups(int64_t tile) {
    const int64_t row = tile * kRowTile, rows = std::min(kRowTile, rows_ - row);
    const at::Tensor own = own_.narrow(0, 0, rows).narrow(1, 0, rows);
    const auto rows_of = [&](const at::Tensor& panel) { return panel.narrow(1, 0, rows).t(); };
    bool changed = false;
    for (int64_t group = 0; group < scale_.size(1); ++group) {
      const int64_t first = group * width_, count = std::min(width_, columns_ - first);
      const at::Tensor scale = scale_[tile][group].narrow(0, 0, rows);
      const at::Tensor zero = problem_.grid.zero.narrow(0, row, rows).select(1, group);
      const at::Tensor codes = rows_of(codes_[tile].narrow(0, first, count));
      const at::Tensor units = units_of(codes, zero, problem_.grid.spec);
      rows_of(units_.narrow(0, 0, count)).copy_(units);
      multiply(hessian_.narrow(0, first, count), first, count, units_.const_data_ptr<float>(),
               count, products_);
      multiply(hessian_, first, count, felt_.const_data_ptr<float>(), columns_, gradient_);
      const ScaleStep step = step_scales({.scale = scale,
                                          .zero = zero,
                                          .units = units,
                                          .felt = rows_of(products_.narrow(0, 0, count)),
                                          .gradient = rows_of(gradient_.narrow(0, 0, count)),
                                          .output = own},
                                         problem_.grid.spec);
      if (at::equal(step.scale, scale)) continue;
      changed = true;
      scale.copy_(step.scale);
      error_.narrow(0, row, rows).narrow(1, first, count).add_(step.change);
      rows_of(felt_.narrow(0, first, count)).add_(at::mm(own, step.change));
    }
    return changed;
  }

  bool descend(int64_t tile, int64_t first, int64_t count) {
    const int64_t groups = scale_.size(1), stride = hessian_.size(1);
    kernels_.descent->block(
        {.gram = hessian_.const_data_ptr<float>() + first * stride + first,
         .output = own_.const_data_ptr<float>(),
         .diagonal = diagonal_.data(),
         .group = group_.data() + first,
         .scale = scale_.const_data_ptr<float>() + tile * groups * kRowTile,
         .zero = zero_.const_data_ptr<float>() + tile * groups * kRowTile,
         .gradient = gradient_.data_ptr<float>(),
         .felt = felt_.data_ptr<float>() + first * kRowTile,
         .change = change_.data_ptr<float>(),
         .codes = codes_.data_ptr<uint8_t>() + (tile * columns_ + first) * kRowTile,
         .gram_stride = stride,
         .columns = count,
         .shape = grid_shape(problem_.grid.spec)});
    return add_changes(tile, first, count);
  }

  bool add_changes(int64_t tile, int64_t first, int64_t count) {
    const float* change = change_.const_data_ptr<float>();
    float* error = error_.data_ptr<float>() + first;
    bool changed = false;
    for (int64_t i = 0; i < std::min(kRowTile, rows_ - tile * kRowTile); ++i) {
      float* row = error + (tile * kRowTile + i) * error_.size(1);
      for (int64_t k = 0; k < count; ++k) {
        row[k] += change[k * kRowTile + i];
        changed |= change[k * kRowTile + i] != 0;
      }
    }
    return changed;
  }

  const DescentProblem& problem_;
  const cpu::KernelTable& kernels_;
  int64_t rows_, columns_, width_;
  at::Tensor hessian_, error_, output_, codes_, scale_, zero_, felt_, gradient_, units_, products_,
      change_, own_;
  std::vector<float> diagonal_;
  std::vector<int64_t> group_;
};

Descended descend_cpu(const DescentProblem& problem) { return Descent(problem).run(); }

const bool descent_installed = descend_stub.install(at::kCPU, &descend_cpu);

}  // namespace
}  // namespace mlcalib
