// SPDX-License-Identifier: Apache-2.0
// H = RᵀR of the columns in the reverse of the order visited, in tiles of kRowTile of them,
// [tile][row][kRowTile], left-looking: every product reads what lies together. R_kj / R_kk is then
// M_jk of the order visited, and is never packed again.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <iterator>
#include <vector>

#include "../interrupt.hpp"
#include "../stubs.hpp"
#include "kernels/kernels.hpp"
#include "panel.hpp"

namespace mlcalib {
namespace {

using cpu::kRowTile;
constexpr int64_t kFactorSteps = 256;  // a tile's rows that stay near the first-level cache

/// A square matrix in tiles of columns, padded with the identity to whole tiles.
class Tiles {
 public:
  Tiles(const at::Tensor& gram, const std::vector<int64_t>& order, float added)
      : count_(cpu::row_tiles(gram.size(0))),
        matrix_(at::empty({count_, count_ * kRowTile, kRowTile}, at::kFloat)) {
    const int64_t columns = gram.size(0);
    at::parallel_for(0, columns, kRowTile, [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p) {
        const float* from = gram.const_data_ptr<float>() + order[p] * columns;
        for (int64_t first = p / kRowTile * kRowTile; first < columns; first += kRowTile) {
          const int64_t count = std::min(kRowTile, columns - first);
          float* to = at(p, first);
          for (int64_t q = 0; q < count; ++q) to[q] = from[order[first + q]];
          std::fill(to + count, to + kRowTile, 0.0F);
        }
        *at(p, p) += added;
      }
    });
    for (int64_t p = columns; p < count_ * kRowTile; ++p) {
      float* to = at(p, columns / kRowTile * kRowTile);
      std::fill(to, to + kRowTile, 0.0F);
      *at(p, p) = 1;
    }
  }

  /// False where the matrix is not positive definite.
  bool factorize() {
    const cpu::FactorKernels& kernels = *cpu::kernels().factor;
    const int64_t strips = kRowTile / kernels.rows;
    for (int64_t tile = 0; tile < count_; ++tile) {
      check_interrupt();
      const int64_t row = tile * kRowTile;
      at::parallel_for(tile * strips, count_ * strips, 1,
                       [&](int64_t begin, int64_t end) { subtract(tile, begin, end); });
      if (!kernels.factorize(at(row, row))) return false;
      at::parallel_for(tile + 1, count_, 1, [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t) kernels.solve(at(row, row), at(row, t * kRowTile));
      });
    }
    return true;
  }

  at::Tensor matrix() const { return matrix_; }

  /// Divides every row by its diagonal, which is returned, its padding too.
  std::vector<float> normalize() {
    std::vector<float> diagonal(count_ * kRowTile);
    for (int64_t p = 0; p < count_ * kRowTile; ++p) diagonal[p] = *at(p, p);
    at::parallel_for(0, count_, 1, [&](int64_t begin, int64_t end) {
      for (int64_t tile = begin; tile < end; ++tile) {
        for (int64_t p = 0; p < (tile + 1) * kRowTile; ++p) {
          float* row = at(p, tile * kRowTile);
          for (int64_t q = 0; q < kRowTile; ++q) row[q] /= diagonal[p];
        }
      }
    });
    return diagonal;
  }

 private:
  float* at(int64_t row, int64_t column) const {
    return data_ + (column / kRowTile * count_ * kRowTile + row) * kRowTile + column % kRowTile;
  }

  // The rows of `tile` less the products of all rows above, in strips of as many rows as a product
  // has: the strips [first, last), counted through tiles of columns, so that even the last few
  // tiles are work for many threads.
  void subtract(int64_t tile, int64_t first, int64_t last) const {
    const cpu::FactorKernels& kernels = *cpu::kernels().factor;
    const int64_t row = tile * kRowTile, strips = kRowTile / kernels.rows;
    for (int64_t step = 0; step < row; step += kFactorSteps) {
      const int64_t steps = std::min(kFactorSteps, row - step);
      for (int64_t strip = first; strip < last; ++strip) {
        const int64_t column = strip / strips * kRowTile, r = strip % strips * kernels.rows;
        kernels.add_product(at(step, row + r), kRowTile, at(step, column), steps, -1, kernels.rows,
                            at(row + r, column));
      }
    }
  }

  int64_t count_;
  at::Tensor matrix_;
  float* data_ = matrix_.data_ptr<float>();
};

Factor factorize_cpu(const at::Tensor& gram, const at::Tensor& visits, double added) {
  const int64_t* visited = visits.const_data_ptr<int64_t>();
  const std::vector<int64_t> order(std::reverse_iterator(visited + visits.numel()),
                                   std::reverse_iterator(visited));
  Tiles tiles(gram.contiguous(), order, static_cast<float>(added));
  if (!tiles.factorize()) return {};
  const std::vector<float> diagonal = tiles.normalize();
  at::Tensor visited_diagonal = at::empty({gram.size(0)}, at::kFloat);
  std::reverse_copy(diagonal.begin(), diagonal.begin() + gram.size(0),
                    visited_diagonal.data_ptr<float>());
  return {tiles.matrix(), visited_diagonal};
}

const bool factor_installed = factorize_stub.install(at::kCPU, &factorize_cpu);

}  // namespace
}  // namespace mlcalib
