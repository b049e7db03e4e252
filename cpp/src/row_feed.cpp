// SPDX-License-Identifier: Apache-2.0
#include "row_feed.hpp"

#include <ATen/TensorOperators.h>
#include <ATen/ops/linalg_solve_triangular.h>

#include <algorithm>

#include "cholesky.hpp"
#include "stubs.hpp"

namespace mlcalib {

at::Tensor row_feed(const at::Tensor& output, const at::Tensor& order, double damp) {
  // Cholesky of the reversed O gives R without an inverse.
  const at::Tensor reversed = order.flip(0);
  const at::Tensor ordered = output.index_select(0, reversed).index_select(1, reversed);
  at::Tensor feed = damped_cholesky(ordered, mean_diagonal(output), damp)
                        .lower.flip({0, 1})
                        .t()
                        .contiguous();  // Rᵀ
  const int64_t rows = feed.size(0);
  for (int64_t first = 0; first < rows; first += kRowBlock) {
    const int64_t count = std::min(kRowBlock, rows - first);
    const at::Tensor block = feed.narrow(0, first, count);
    if (first > 0) {
      const at::Tensor earlier = block.narrow(1, 0, first);
      earlier.copy_(at::linalg_solve_triangular(block.narrow(1, first, count), earlier,
                                                /*upper=*/false));
    }
    block.narrow(1, first, rows - first).zero_();
  }
  return feed;
}

}  // namespace mlcalib
