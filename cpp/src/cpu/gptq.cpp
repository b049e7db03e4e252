// SPDX-License-Identifier: Apache-2.0
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <vector>

#include "../grids.hpp"
#include "../host_device.hpp"
#include "../interrupt.hpp"
#include "../stubs.hpp"
#include "fit_panel.hpp"
#include "kernels/kernels.hpp"
#include "panel.hpp"

namespace mlcalib {
namespace {

using cpu::kRowTile;
static_assert(kRowBlock == kRowTile, "rows of a tile are solved at the same time");
constexpr int64_t kErrorSteps = 256;  // errors that stay near the first-level cache

/// The state of one solve. Panels are [tile][column][kRowTile]; errors and the factor have their
/// columns in the reverse of the order visited: `last` is visited first.
class Solve {
 public:
  explicit Solve(const GptqProblem& problem)
      : problem_(problem),
        spec_(problem.spec),
        running_(std::holds_alternative<FittedAsReached>(problem.grids)),
        kernels_(cpu::kernels()),
        rows_(problem.weight.size(0)),
        columns_(problem.weight.size(1)),
        fit_width_(fit_width(problem.spec, columns_)),
        padded_(cpu::row_tiles(columns_) * kRowTile),
        weight_(cpu::to_panel<float>(problem.weight)),
        error_(at::empty({weight_.size(0), padded_, kRowTile}, at::kFloat)),
        target_(
            at::empty({weight_.size(0), std::min(problem.block, columns_), kRowTile}, at::kFloat)),
        codes_(at::empty(weight_.sizes(), at::kByte)),
        energy_(at::zeros({weight_.size(0) * kRowTile}, weight_.options().dtype(at::kDouble))),
        square_(at::zeros(energy_.sizes(), energy_.options())),
        diagonal_(columns_),
        columns_of_(columns_),
        groups_of_(problem.group_of.rbegin(), problem.group_of.rend()) {
    const int64_t* visits = problem.visits.const_data_ptr<int64_t>();
    std::reverse_copy(visits, visits + columns_, columns_of_.begin());
    const float* diagonal = problem.factor.diagonal.const_data_ptr<float>();
    std::reverse_copy(diagonal, diagonal + columns_, diagonal_.begin());
    error_.narrow(1, columns_, padded_ - columns_).zero_();
    if (const Grid* given = std::get_if<Grid>(&problem.grids)) {
      scale_ = cpu::scale_panel(given->scale);
      zero_ = cpu::to_panel<float>(given->zero.to(at::kFloat).contiguous());
      return;
    }
    scale_ = at::empty({weight_.size(0), spec_.groups(columns_), kRowTile}, weight_.options());
    zero_ = at::empty(scale_.sizes(), scale_.options());
    if (!running_) {
      cpu::fit_groups(weight_, error_weights(), spec_, scale_, zero_);
      hold(0, scale_.size(1));
    }
  }

  GptqSolution run() {
    if (problem_.row_feed.defined()) {
      solve_two_sided();
    } else {
      solve_one_sided();
    }
    return {.codes = cpu::from_panel<uint8_t, uint8_t>(codes_, rows_),
            .energy = energy_.narrow(0, 0, rows_),
            .square = square_.narrow(0, 0, rows_),
            .grid = {cpu::from_panel<float, float>(scale_, rows_), zeros(), spec_}};
  }

 private:
  /// The columns [first, last), solved between two products, and their part of the factor.
  struct Block {
    int64_t first, last;
    at::Tensor packed;  // of pack_factor
    at::Tensor own;     // of unit
    at::Tensor changes;  // two-sided: W − Ŵ, [columns / rows of a product][row][rows of a product]

    int64_t count() const { return last - first; }
  };

  void solve_one_sided() {
    for (int64_t last = columns_; last > 0;) {
      check_interrupt();
      const int64_t fit_begin = begin_of_fit(last);
      if (running_ && starts_fit(last)) fit_running(fit_begin, last);
      const int64_t block_begin = std::max<int64_t>(last - problem_.block, 0);
      const int64_t first = running_ ? std::max(block_begin, fit_begin) : block_begin;
      const Block block = make_block(first, last);
      gather_all(block);
      at::parallel_for(0, weight_.size(0), 1, [&](int64_t begin, int64_t end) {
        for (int64_t tile = begin; tile < end; ++tile) solve(block, tile, target_of(tile));
      });
      last = first;
    }
  }

  float* target_of(int64_t tile) const {
    return target_.data_ptr<float>() + tile * target_.stride(0);
  }

  // Most of the work, and its columns are independent: threads get equal shares, which may begin
  // and end inside of a tile.
  void gather_all(const Block& block) const {
    const int64_t rows = kernels_.factor->rows, strips = divide_up(block.count(), rows);
    at::parallel_for(0, weight_.size(0) * strips, 1, [&](int64_t begin, int64_t end) {
      for (int64_t next = begin; next < end;) {
        const int64_t tile = next / strips, strip = next % strips;
        const int64_t count = std::min(strips - strip, end - next);
        gather(block, tile, strip * rows, std::min((strip + count) * rows, block.count()),
               target_of(tile));
        next += count;
      }
    });
  }

  // A tile needs all earlier tiles of the same columns, and its own earlier columns: what lies on
  // a diagonal of tiles and blocks is independent.
  void solve_two_sided() {
    const int64_t tiles = weight_.size(0);
    feed_ = cpu::to_panel<float>(problem_.row_feed);
    std::vector<Block> blocks;
    for (int64_t last = columns_; last > 0; last = blocks.back().first) {
      blocks.push_back(make_block(std::max<int64_t>(last - problem_.block, 0), last));
      Block& block = blocks.back();
      const int64_t rows = kernels_.factor->rows;
      block.changes =
          at::empty({divide_up(block.count(), rows), tiles * kRowTile, rows}, weight_.options());
    }
    const int64_t steps = static_cast<int64_t>(blocks.size());
    for (int64_t diagonal = 0; diagonal < tiles + steps - 1; ++diagonal) {
      check_interrupt();
      const int64_t from = std::max<int64_t>(diagonal - steps + 1, 0);
      at::parallel_for(from, std::min(diagonal + 1, tiles), 1, [&](int64_t begin, int64_t end) {
        for (int64_t tile = begin; tile < end; ++tile) solve_moved(blocks[diagonal - tile], tile);
      });
    }
  }

  // The weights of a tile move by what earlier tiles changed, and are solved from there.
  void solve_moved(const Block& block, int64_t tile) {
    const int64_t rows = kernels_.factor->rows, height = weight_.size(0) * kRowTile;
    const int64_t earlier = tile * kRowTile, count = block.count();
    const float* feed = feed_.const_data_ptr<float>() + tile * rows_ * kRowTile;
    const float* changes = block.changes.const_data_ptr<float>();
    std::vector<float> moved(count * kRowTile), target(count * kRowTile);
    for (int64_t k = 0; k < count; k += rows) {
      kernels_.factor->add_product(changes + k * height, rows, feed, earlier, 1,
                                   std::min(rows, count - k), moved.data() + k * kRowTile);
    }
    float* weight = weight_.data_ptr<float>() + tile * columns_ * kRowTile;
    for (int64_t k = 0; k < count; ++k) {
      float* column = weight + columns_of_[block.first + k] * kRowTile;
      for (int64_t i = 0; i < kRowTile; ++i) column[i] += moved[k * kRowTile + i];
    }
    gather(block, tile, 0, count, target.data());
    solve(block, tile, target.data());
    keep_changes(block, tile, moved.data());
  }

  // W − Ŵ: the error of what the weights were moved to, less the move.
  void keep_changes(const Block& block, int64_t tile, const float* moved) const {
    const int64_t rows = kernels_.factor->rows, height = weight_.size(0) * kRowTile;
    const float* error = error_.const_data_ptr<float>() + (tile * padded_ + block.first) * kRowTile;
    for (int64_t k = 0; k < block.count(); ++k) {
      float* to =
          block.changes.data_ptr<float>() + (k / rows * height + tile * kRowTile) * rows + k % rows;
      for (int64_t i = 0; i < kRowTile; ++i) {
        to[i * rows] = error[k * kRowTile + i] - moved[k * kRowTile + i];
      }
    }
  }

  Block make_block(int64_t first, int64_t last) const {
    return {.first = first,
            .last = last,
            .packed = pack_factor(first, last),
            .own = unit(first, last),
            .changes = {}};
  }

  at::Tensor zeros() const {
    return spec_.has_minima() ? cpu::from_panel<float, float>(zero_, rows_)
                              : cpu::from_panel<float, uint8_t>(zero_, rows_);
  }

  // Rounds the grids of groups that were fitted together to what the spec holds.
  void hold(int64_t group, int64_t groups) {
    const at::Tensor scale = scale_.narrow(1, group, groups), zero = zero_.narrow(1, group, groups);
    const Grid held = round_grid(scale, zero, spec_);
    scale.copy_(held.scale);
    zero.copy_(held.zero);
  }

  // Columns that are fitted together are consecutive: running grids have the natural order.
  bool starts_fit(int64_t last) const { return (columns_ - last) % fit_width_ == 0; }
  int64_t begin_of_fit(int64_t last) const {
    return std::max<int64_t>(columns_ - ((columns_ - last) / fit_width_ + 1) * fit_width_, 0);
  }

  // R_kj / R_kk, and of the same tile all columns after it.
  const float* factor(int64_t k, int64_t j) const {
    return factor_ + (j / kRowTile * padded_ + k) * kRowTile + j % kRowTile;
  }

  // R_kj / R_kk of the columns [first, last), zero where j < k.
  at::Tensor unit(int64_t first, int64_t last) const {
    const at::Tensor unit = at::zeros({last - first, last - first}, weight_.options());
    float* row = unit.data_ptr<float>();
    for (int64_t k = first; k < last; ++k, row += last - first) {
      for (int64_t j = k; j < last; ++j) row[j - first] = *factor(k, j);
    }
    return unit;
  }

  // R_kj / R_kk of k in [first, last) and of all j that have been visited, for the products:
  // [k / rows][j][rows of one product], of which the last may be fewer.
  at::Tensor pack_factor(int64_t first, int64_t last) const {
    const int64_t rows = kernels_.factor->rows, steps = padded_ - last;
    const int64_t blocks = divide_up(last - first, rows);
    const at::Tensor packed = at::empty({blocks, steps, rows}, at::kFloat);
    at::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block) {
        const int64_t row = first + block * rows, count = std::min(rows, last - row);
        float* to = packed.data_ptr<float>() + block * steps * rows;
        for (int64_t j = last; j < padded_; j = (j / kRowTile + 1) * kRowTile) {
          pack_tile(row, count, j, to + (j - last) * rows);
        }
      }
    });
    return packed;
  }

  // The columns from j on that lie in one tile, of `count` rows; the others are zero.
  void pack_tile(int64_t row, int64_t count, int64_t j, float* to) const {
    const int64_t rows = kernels_.factor->rows, columns = kRowTile - j % kRowTile;
    if (count < rows) std::fill(to, to + columns * rows, 0.0F);
    for (int64_t r = 0; r < count; ++r) {
      const float* from = factor(row + r, j);
      for (int64_t c = 0; c < columns; ++c) to[c * rows + r] = from[c];
    }
  }

  // out [k][kRowTile] += Σ_j (R_kj / R_kk) D_j of all columns j visited, those from `visited` on,
  // for one tile and the columns k in [from, to) of the block; `from` begins rows of one product.
  void feed_back(const at::Tensor& packed, int64_t tile, int64_t visited, int64_t from, int64_t to,
                 float* out) const {
    const int64_t rows = kernels_.factor->rows, steps = padded_ - visited;
    const float* factors = packed.const_data_ptr<float>();
    const float* errors = error_.const_data_ptr<float>() + (tile * padded_ + visited) * kRowTile;
    for (int64_t step = 0; step < steps; step += kErrorSteps) {
      for (int64_t k = from; k < to; k += rows) {
        kernels_.factor->add_product(factors + k * steps + step * rows, rows,
                                     errors + step * kRowTile, std::min(kErrorSteps, steps - step),
                                     1, std::min(rows, to - k), out + k * kRowTile);
      }
    }
  }

  // Columns stand in the weight's own order.
  cpu::ErrorWeights error_weights() const {
    return {spec_.range == Range::kGram ? problem_.importance : at::Tensor(),
            spec_.range == Range::kGramBlock ? problem_.gram : at::Tensor()};
  }

  // panel [k][kRowTile] becomes U⁻¹ panel, of the transpose of a unit upper triangle U. LAPACK's
  // solution would depend on how many tiles are solved together.
  void substitute(const at::Tensor& transposed, float* panel) const {
    const int64_t rows = kernels_.factor->rows, count = transposed.size(0);
    const float* unit = transposed.const_data_ptr<float>();
    for (int64_t end = count; end > 0; end = (end - 1) / rows * rows) {
      const int64_t begin = (end - 1) / rows * rows;
      kernels_.factor->add_product(unit + end * count + begin, count, panel + end * kRowTile,
                                   count - end, -1, end - begin, panel + begin * kRowTile);
      for (int64_t j = end - 1; j > begin; --j) {
        for (int64_t k = begin; k < j; ++k) {
          const float value = unit[j * count + k];
          for (int64_t i = 0; i < kRowTile; ++i) {
            panel[k * kRowTile + i] -= value * panel[j * kRowTile + i];
          }
        }
      }
    }
  }

  // Fits groups to the weights that GPTQ holds when it gets there: with F, the feedback of all
  // earlier ones, W_G + R_GG'⁻¹ F, where R' has the unit diagonal.
  void fit_running(int64_t first, int64_t last) {
    const int64_t count = last - first, group = groups_of_[last - 1];
    const int64_t groups = groups_of_[first] - group + 1, width = group_width(spec_, columns_);
    at::Tensor held = at::zeros({weight_.size(0), count, kRowTile}, weight_.options());
    if (last < columns_) {
      const at::Tensor packed = pack_factor(first, last), own = unit(first, last).t().contiguous();
      at::parallel_for(0, weight_.size(0), 1, [&](int64_t begin, int64_t end) {
        for (int64_t tile = begin; tile < end; ++tile) {
          float* fed = held[tile].data_ptr<float>();
          feed_back(packed, tile, last, 0, count, fed);
          substitute(own, fed);
        }
      });
    }
    const int64_t column = columns_ - last;  // the order is natural
    held = (held.flip(1) + weight_.narrow(1, column, count)).contiguous();
    for (int64_t i = 0; i < groups; ++i) {
      const int64_t from = i * width, wide = std::min(width, count - from);
      cpu::fit_panel(held.narrow(1, from, wide), error_weights().narrow(column + from, wide), spec_,
                     group + i, scale_, zero_);
    }
    hold(group, groups);
  }

  // The weights of a tile and the feedback of its columns before the block, for the columns
  // [from, to) of the block.
  void gather(const Block& block, int64_t tile, int64_t from, int64_t to, float* target) const {
    const float* weight = weight_.const_data_ptr<float>() + tile * columns_ * kRowTile;
    for (int64_t k = from; k < to; ++k) {
      const float* column = weight + columns_of_[block.first + k] * kRowTile;
      std::copy(column, column + kRowTile, target + k * kRowTile);
    }
    feed_back(block.packed, tile, block.last, from, to, target);
  }

  void solve(const Block& block, int64_t tile, const float* target) {
    const int64_t groups = scale_.size(1), first = block.first;
    kernels_.gptq_block({.weight = weight_.const_data_ptr<float>() + tile * columns_ * kRowTile,
                         .column = columns_of_.data() + first,
                         .group = groups_of_.data() + first,
                         .target = target,
                         .factor = block.own.const_data_ptr<float>(),
                         .diagonal = diagonal_.data() + first,
                         .scale = scale_.const_data_ptr<float>() + tile * groups * kRowTile,
                         .zero = zero_.const_data_ptr<float>() + tile * groups * kRowTile,
                         .error = error_.data_ptr<float>() + (tile * padded_ + first) * kRowTile,
                         .codes = codes_.data_ptr<uint8_t>() + tile * columns_ * kRowTile,
                         .energy = energy_.data_ptr<double>() + tile * kRowTile,
                         .square = square_.data_ptr<double>() + tile * kRowTile,
                         .columns = block.count(),
                         .shape = grid_shape(spec_)});
  }

  const GptqProblem& problem_;
  const GridSpec& spec_;
  const bool running_;
  const cpu::KernelTable& kernels_;
  int64_t rows_, columns_, fit_width_, padded_;
  at::Tensor weight_, error_, target_, codes_, energy_, square_, scale_, zero_, feed_;
  std::vector<float> diagonal_;
  std::vector<int64_t> columns_of_, groups_of_;
  const float* factor_ = problem_.factor.matrix.const_data_ptr<float>();
};

GptqSolution gptq_cpu(const GptqProblem& problem) { return Solve(problem).run(); }

const bool gptq_installed = gptq_stub.install(at::kCPU, &gptq_cpu);

}  // namespace
}  // namespace mlcalib
