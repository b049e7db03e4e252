// SPDX-License-Identifier: Apache-2.0
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/eye.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

#include "../grids.hpp"
#include "../interrupt.hpp"
#include "../scale_step.hpp"
#include "../stubs.hpp"
#include "device.hpp"

namespace mlcalib {
namespace {

static_assert(cuda::DescentBlock::kRows == kRowBlock, "tiles are those of the CPU");

/// The state of one descent.
class Descent {
 public:
  explicit Descent(const DescentProblem& problem)
      : problem_(problem),
        rows_(problem.codes.size(0)),
        columns_(problem.codes.size(1)),
        hessian_(problem.hessian.contiguous()),
        error_(problem.error.contiguous()),
        output_(problem.output.defined() ? problem.output.clone(at::MemoryFormat::Contiguous)
                                         : at::Tensor()),
        alone_(at::eye(std::min(rows_, kRowBlock), error_.options())),
        codes_(problem.codes.clone(at::MemoryFormat::Contiguous)),
        scale_(problem.grid.scale.clone(at::MemoryFormat::Contiguous)),
        zero_(problem.grid.zero.to(at::kFloat).contiguous()),
        group_of_(at::arange(columns_, error_.options().dtype(at::kLong))
                      .floor_divide_(group_width(problem.grid.spec, columns_))),
        changed_(at::zeros({1}, error_.options().dtype(at::kInt))) {
    if (output_.defined()) output_.diagonal().add_(problem.output_added);
  }

  Descended run() {
    for (int64_t sweep = 0; sweep < problem_.sweeps; ++sweep) {
      changed_.zero_();
      for (int64_t row = 0; row < rows_; row += kRowBlock) {
        check_interrupt();
        sweep_tile(row, std::min(kRowBlock, rows_ - row), sweep == 0);
      }
      if (changed_.item<int32_t>() == 0) break;
    }
    return {codes_, {scale_, problem_.grid.zero, problem_.grid.spec}};
  }

 private:
  void sweep_tile(int64_t row, int64_t count, bool scales) {
    const at::Tensor felt = output_.defined() ? at::mm(output_.narrow(0, row, count), error_)
                                              : error_.narrow(0, row, count).clone();
    const at::Tensor own = output_.defined() ? output_.narrow(0, row, count).narrow(1, row, count)
                                             : alone_.narrow(0, 0, count).narrow(1, 0, count);
    if (scales && has_free_scales(problem_.grid.spec)) step_groups(row, own, felt);
    for (int64_t first = 0; first < columns_; first += cuda::DescentBlock::kColumns) {
      const int64_t columns = std::min(cuda::DescentBlock::kColumns, columns_ - first);
      const at::Tensor gradient = at::mm(felt, hessian_.narrow(1, first, columns));
      descend(row, own, first, gradient, felt);
    }
  }

  // Groups come one after the other: the scales of each become the best that they can be.
  void step_groups(int64_t row, const at::Tensor& own, const at::Tensor& felt) {
    const int64_t width = group_width(problem_.grid.spec, columns_), count = own.size(0);
    for (int64_t group = 0; group < scale_.size(1); ++group) {
      const int64_t first = group * width, wide = std::min(width, columns_ - first);
      const at::Tensor scale = scale_.narrow(0, row, count).select(1, group);
      const at::Tensor zero = problem_.grid.zero.narrow(0, row, count).select(1, group);
      const at::Tensor codes = codes_.narrow(0, row, count).narrow(1, first, wide);
      const at::Tensor units = units_of(codes, zero, problem_.grid.spec);
      const at::Tensor columns = hessian_.narrow(1, first, wide);
      const ScaleStep step = step_scales({.scale = scale,
                                          .zero = zero,
                                          .units = units,
                                          .felt = at::mm(units, columns.narrow(0, first, wide)),
                                          .gradient = at::mm(felt, columns),
                                          .output = own},
                                         problem_.grid.spec);
      changed_.logical_or_(step.scale.ne(scale).any());
      scale.copy_(step.scale);
      error_.narrow(0, row, count).narrow(1, first, wide).add_(step.change);
      felt.narrow(1, first, wide).add_(at::mm(own, step.change));
    }
  }

  void descend(int64_t row, const at::Tensor& own, int64_t first, const at::Tensor& gradient,
               const at::Tensor& felt) {
    const int64_t corner = row * columns_ + first, groups = scale_.size(1);
    cuda::on_device_of(error_, [&](cudaStream_t stream) {
      cuda::descent_block({.gram = cuda::data(hessian_) + first * columns_ + first,
                           .output = cuda::data(own),
                           .gradient = cuda::data(gradient),
                           .scale = cuda::data(scale_) + row * groups,
                           .zero = cuda::data(zero_) + row * groups,
                           .group_of = cuda::pointer<const int64_t>(group_of_) + first,
                           .felt = cuda::pointer<float>(felt) + first,
                           .error = cuda::pointer<float>(error_) + corner,
                           .codes = cuda::pointer<uint8_t>(codes_) + corner,
                           .changed = cuda::pointer<int32_t>(changed_),
                           .rows = own.size(0),
                           .columns = gradient.size(1),
                           .stride = columns_,
                           .gram_stride = columns_,
                           .output_stride = own.stride(0),
                           .groups = groups,
                           .shape = grid_shape(problem_.grid.spec)},
                          stream);
    });
  }

  const DescentProblem& problem_;
  int64_t rows_, columns_;
  at::Tensor hessian_, error_, output_, alone_, codes_, scale_, zero_, group_of_, changed_;
};

Descended descend_cuda(const DescentProblem& problem) { return Descent(problem).run(); }

const bool descent_installed = descend_stub.install(cuda::kDevice, &descend_cuda);

}  // namespace
}  // namespace mlcalib
