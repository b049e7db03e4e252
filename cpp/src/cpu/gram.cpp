// SPDX-License-Identifier: Apache-2.0
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "../host_device.hpp"
#include "../stubs.hpp"
#include "activations.hpp"
#include "kernels/kernels.hpp"

namespace mlcalib {
namespace {

using cpu::kGramTile;
constexpr int64_t kBlockChannels =
    4 * kGramTile;  // whose packed tokens stay in the second-level cache

int64_t tiles_of(int64_t channels) { return divide_up(channels, kGramTile); }

void add_tokens(const cpu::Activations& x, void* packed, float* sums) {
  const cpu::GramKernels& kernels = *cpu::kernels().gram;
  const int64_t groups = divide_up(x.channels, kernels.columns);
  const int64_t strips = groups * (kernels.columns / kernels.strip);
  at::parallel_for(0, strips, 1,
                   [&](int64_t begin, int64_t end) { kernels.pack(x, begin, end, packed); });

  // Rows of tiles on or above the diagonal, counted over blocks of rows and the groups to their
  // right, in equal shares.
  const int64_t steps = kernels.steps(x.element, x.tokens);
  const int64_t height = kernels.columns / kernels.rows, block = kBlockChannels / kernels.rows;
  at::parallel_for(0, height * groups * (groups + 1) / 2, 1, [&](int64_t begin, int64_t end) {
    int64_t start = 0;  // of the block and group, in the count
    for (int64_t row = 0; row < height * groups; row += block) {
      for (int64_t group = row / height; group < groups && start < end; ++group) {
        const int64_t count = std::min(block, height * (group + 1) - row);
        const int64_t first = std::max<int64_t>(begin - start, 0);
        const int64_t last = std::min(end - start, count);
        if (first < last) {
          kernels.tiles(packed, x.element, steps, x.channels, group, row + first, row + last, sums);
        }
        start += count;
      }
    }
  });
}

int64_t piece_tokens_cpu(const at::Tensor& x) { return cpu::piece_tokens(*cpu::kernels().gram, x); }

at::Tensor gram_sums_cpu(int64_t channels, at::Device /*device*/) {
  return at::zeros({cpu::gram_tile(0, tiles_of(channels))}, at::kFloat);
}

void gram_update_cpu(const at::Tensor& sums, const at::Tensor& x) {
  const at::Tensor rows = x.stride(1) == 1 ? x : x.contiguous();
  const cpu::GramKernels& kernels = *cpu::kernels().gram;
  const int64_t channels = rows.size(1), tokens = rows.size(0);
  const int64_t groups = divide_up(channels, kernels.columns);
  const cpu::Element element = cpu::element_of(rows);
  const int64_t at_once = std::min(tokens, kernels.tokens(element));
  const at::Tensor packed =
      at::empty({kernels.steps(element, at_once), groups * kernels.columns}, sums.options());
  for (int64_t first = 0; first < tokens; first += at_once) {
    add_tokens(cpu::activations(rows, first, std::min(at_once, tokens - first)), packed.data_ptr(),
               sums.data_ptr<float>());
  }
}

// Calls run(tile, row, rows, column, columns) for each tile of the upper triangle. Threads get
// equal shares of the tiles, not of the columns, of which the last holds twice the mean.
template <class Run>
void for_each_tile(int64_t channels, const Run& run) {
  const int64_t tiles = tiles_of(channels);
  at::parallel_for(0, tiles * (tiles + 1) / 2, 1, [&](int64_t begin, int64_t end) {
    int64_t start = 0;  // of the column, in the count
    for (int64_t j = 0; start < end; start += ++j) {
      const int64_t column = j * kGramTile, columns = std::min(kGramTile, channels - column);
      const int64_t last = std::min(j + 1, end - start);
      for (int64_t i = std::max<int64_t>(begin - start, 0); i < last; ++i) {
        run(cpu::gram_tile(i, j), i * kGramTile, std::min(kGramTile, channels - i * kGramTile),
            column, columns);
      }
    }
  });
}

at::Tensor gram_pack_cpu(const at::Tensor& gram) {
  const int64_t channels = gram.size(0);
  const at::Tensor sums = gram_sums_cpu(channels, gram.device()), source = gram.contiguous();
  const float* from = source.const_data_ptr<float>();
  float* to = sums.data_ptr<float>();
  for_each_tile(channels, [=](int64_t tile, int64_t row, int64_t rows, int64_t column, int64_t n) {
    for (int64_t r = 0; r < rows; ++r) {
      std::copy_n(from + (row + r) * channels + column, n, to + tile + r * kGramTile);
    }
  });
  return sums;
}

at::Tensor gram_unpack_cpu(const at::Tensor& sums, int64_t channels) {
  at::Tensor gram = at::empty({channels, channels}, sums.options());
  const float* from = sums.const_data_ptr<float>();
  float* to = gram.data_ptr<float>();
  for_each_tile(channels, [=](int64_t tile, int64_t row, int64_t rows, int64_t column, int64_t n) {
    const float* source = from + tile;
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t first = row == column ? r : 0;
      std::copy(source + r * kGramTile + first, source + r * kGramTile + n,
                to + (row + r) * channels + column + first);
    }
    // Its mirror image, along the rows that are written.
    for (int64_t c = 0; c < n; ++c) {
      float* line = to + (column + c) * channels + row;
      const int64_t count = row == column ? c : rows;
      for (int64_t r = 0; r < count; ++r) line[r] = source[r * kGramTile + c];
    }
  });
  return gram;
}

// Tiles off the diagonal count twice. Of those on it each row from the diagonal on: what stands
// before is not kept.
double gram_dot(const at::Tensor& a, const at::Tensor& b, int64_t channels) {
  const float* left = a.const_data_ptr<float>();
  const float* right = b.const_data_ptr<float>();
  std::vector<double> sums(cpu::gram_tile(0, tiles_of(channels)) / (kGramTile * kGramTile));
  for_each_tile(channels, [&](int64_t tile, int64_t row, int64_t, int64_t column, int64_t) {
    double& sum = sums[tile / (kGramTile * kGramTile)];
    if (row != column) {
      sum += 2 * cpu::kernels().dot(left + tile, right + tile, kGramTile * kGramTile);
      return;
    }
    for (int64_t r = 0; r < kGramTile; ++r) {
      const int64_t at = tile + r * (kGramTile + 1);
      sum += 2 * cpu::kernels().dot(left + at, right + at, kGramTile - r) -
             static_cast<double>(left[at]) * static_cast<double>(right[at]);
    }
  });
  return std::accumulate(sums.begin(), sums.end(), 0.0);
}

std::vector<double> gram_losses_cpu(const at::Tensor& change,
                                    const std::vector<at::Tensor>& grams) {
  const int64_t channels = change.size(1);
  const at::Tensor sums = gram_sums_cpu(channels, change.device());
  gram_update_cpu(sums, change);
  std::vector<double> losses;
  for (const at::Tensor& gram : grams) losses.push_back(gram_dot(sums, gram, channels));
  return losses;
}

// The difference before the product: both Grams are far larger than what they differ by.
void deviation_update_cpu(const at::Tensor& deviation, const at::Tensor& x,
                          const at::Tensor& reference) {
  const at::Tensor rows = x.to(at::kFloat);
  deviation.addmm_((reference.to(at::kFloat) - rows).t(), rows);
}

double dot_cpu(const at::Tensor& a, const at::Tensor& b) {
  const int64_t rows = a.size(0), columns = a.size(1);
  const float* left = a.const_data_ptr<float>();
  const float* right = b.const_data_ptr<float>();
  std::vector<double> sums(rows);
  at::parallel_for(0, rows, 64, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      sums[r] = cpu::kernels().dot(left + r * columns, right + r * columns, columns);
    }
  });
  return std::accumulate(sums.begin(), sums.end(), 0.0);
}

const bool gram_installed = piece_tokens_stub.install(at::kCPU, &piece_tokens_cpu) &&
                            gram_sums_stub.install(at::kCPU, &gram_sums_cpu) &&
                            gram_update_stub.install(at::kCPU, &gram_update_cpu) &&
                            gram_pack_stub.install(at::kCPU, &gram_pack_cpu) &&
                            gram_unpack_stub.install(at::kCPU, &gram_unpack_cpu) &&
                            gram_losses_stub.install(at::kCPU, &gram_losses_cpu) &&
                            deviation_update_stub.install(at::kCPU, &deviation_update_cpu) &&
                            dot_stub.install(at::kCPU, &dot_cpu);

}  // namespace
}  // namespace mlcalib
