// SPDX-License-Identifier: Apache-2.0
// Ranges, codes and values. A group of one row is the work of a team: its lanes share the columns
// where order does not matter, and each tries a range of its own where it does, so that losses are
// summed as on the CPU.
#include "launch.cuh"

namespace mlcalib::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kLanes = 16;  // the 14 ranges of a search in one go
constexpr int kTeams = kThreads / kLanes;
// Of an SM; without being told, ptxas takes fewer registers than these leave it, and spills.
constexpr int kBlocks = 8;
using Lanes = Team<kLanes>;

struct Plain {
  const float* weight;
  __device__ float operator()(int column) const { return weight[column]; }
};

struct Scaled {
  const float* weight;
  const float* factor;
  __device__ float operator()(int column) const { return weight[column] * factor[column]; }
};

template <class Weight>
__device__ Extremes extremes_of(const Weight& weight, int columns, const GridShape& shape) {
  Extremes found;
  for (int c = Lanes::lane(); c < columns; c += kLanes) found = widened(found, weight(c));
  for (int bits = kLanes / 2; bits > 0; bits /= 2) {
    found = joined(found, {Lanes::across(found.low, bits), Lanes::across(found.high, bits)});
  }
  return range_of(found, shape);
}

/// The range of least loss(level), the same on all lanes.
template <class Weight, class Loss>
__device__ Level best_level(const Weight& weight, int columns, const GridShape& shape,
                            const Loss& loss) {
  const Extremes extremes = extremes_of(weight, columns, shape);
  Level best = candidate_level(extremes, shape, 0);
  if (shape.candidates == 1) return best;
  float best_loss = 0;
  for (int first = 0; first < shape.candidates; first += kLanes) {
    const Level own = candidate_level(extremes, shape, first + Lanes::lane());
    const float own_loss = loss(own);
    int winner = -1;
    for (int i = 0; i < kLanes && first + i < shape.candidates; ++i) {
      const float each = Lanes::from(own_loss, i);
      if (first + i > 0 && !is_better(each, best_loss)) continue;
      winner = i;
      best_loss = each;
    }
    if (winner >= 0) best = {Lanes::from(own.scale, winner), Lanes::from(own.zero, winner)};
  }
  return best;
}

/// Calls visit(row, group, first column, columns) with every group of every row. Teams of a block
/// take the same columns of consecutive rows.
template <class Visit>
__device__ void for_each_group(int64_t rows, int64_t columns, int64_t width, const Visit& visit) {
  const int64_t groups = divide_up(columns, width);
  const int64_t step = static_cast<int64_t>(gridDim.x) * kTeams;
  for (int64_t at = static_cast<int64_t>(blockIdx.x) * kTeams + Lanes::in_block();
       at < rows * groups; at += step) {
    const int64_t group = at / rows, first = group * width;
    visit(at % rows, group, first, static_cast<int>(min_of(width, columns - first)));
  }
}

template <class NumberSet>
__global__ void __launch_bounds__(kThreads, kBlocks)
    fit_by_diagonal(FitGrid fit, NumberSet numbers) {
  const int64_t groups = divide_up(fit.columns, fit.width);
  for_each_group(fit.rows, fit.columns, fit.width,
                 [&](int64_t row, int64_t group, int64_t first, int columns) {
                   const Plain weight{fit.weight + row * fit.stride + first};
                   const float* importance =
                       fit.importance == nullptr ? nullptr : fit.importance + first;
                   const Level best = best_level(weight, columns, fit.shape, [&](Level level) {
                     return diagonal_loss(weight, importance, columns, level, numbers);
                   });
                   if (Lanes::lane() == 0) {
                     fit.scale[row * groups + group] = best.scale;
                     fit.zero[row * groups + group] = best.zero;
                   }
                 });
}

/// Each lane holds the errors of its range: [column][thread], in shared memory or in scratch.
template <bool kShared, class NumberSet>
__global__ void __launch_bounds__(kThreads, kBlocks) fit_by_block(FitGrid fit, NumberSet numbers) {
  const int64_t groups = divide_up(fit.columns, fit.width);
  float* errors = kShared ? dynamic_shared() : fit.scratch + blockIdx.x * fit.width * kThreads;
  errors += threadIdx.x;
  for_each_group(fit.rows, fit.columns, fit.width,
                 [&](int64_t row, int64_t group, int64_t first, int columns) {
                   const Plain weight{fit.weight + row * fit.stride + first};
                   const float* gram = fit.gram + first * fit.gram_stride + first;
                   const Level best = best_level(weight, columns, fit.shape, [&](Level level) {
                     return block_loss(weight, gram, fit.gram_stride, errors, kThreads, columns,
                                       level, numbers);
                   });
                   if (Lanes::lane() == 0) {
                     fit.scale[row * groups + group] = best.scale;
                     fit.zero[row * groups + group] = best.zero;
                   }
                 });
}

template <class NumberSet>
__global__ void __launch_bounds__(kThreads, kBlocks)
    round_scaled_kernel(RoundScaled g, NumberSet numbers) {
  const int64_t groups = divide_up(g.columns, g.width);
  for_each_group(
      g.rows, g.columns, g.width, [&](int64_t row, int64_t group, int64_t first, int columns) {
        const Scaled weight{g.weight + row * g.columns + first, g.factor + first};
        const float* importance = g.importance == nullptr ? nullptr : g.importance + first;
        const Level level = best_level(weight, columns, g.shape, [&](Level each) {
          return diagonal_loss(weight, importance, columns, each, numbers);
        });
        float sum = 0;
        for (int c = Lanes::lane(); c < columns; c += kLanes) {
          const float error = scaled_error(weight(c), level, g.inverse[first + c], numbers);
          g.error[row * g.columns + first + c] = error;
          sum += error * error * g.square[first + c];
        }
        sum = Lanes::sum(sum);
        if (Lanes::lane() == 0) g.sum[row * groups + group] = sum;
      });
}

__device__ inline Level level_at(const Levels& levels, int64_t row, int64_t column) {
  const int64_t groups = divide_up(levels.columns, levels.width);
  const int64_t at = row * groups + column / levels.width;
  return {levels.scale[at], levels.zero[at]};
}

template <class NumberSet>
__global__ void __launch_bounds__(kThreads)
    quantize_kernel(const float* weight, Levels levels, NumberSet numbers, uint8_t* codes) {
  const int64_t row = blockIdx.x;
  for (int64_t c = threadIdx.x; c < levels.columns; c += kThreads) {
    const int64_t at = row * levels.columns + c;
    codes[at] = nearest_code(weight[at], level_at(levels, row, c), numbers);
  }
}

template <class NumberSet>
__global__ void __launch_bounds__(kThreads)
    dequantize_kernel(const uint8_t* codes, Levels levels, NumberSet numbers, float* weight) {
  const int64_t row = blockIdx.x;
  for (int64_t c = threadIdx.x; c < levels.columns; c += kThreads) {
    const int64_t at = row * levels.columns + c;
    weight[at] = value_of(static_cast<float>(codes[at]), level_at(levels, row, c), numbers);
  }
}

constexpr int64_t kSharedBytes = 64 << 10;    // of a block: what every device since sm_80 grants
constexpr int64_t kScratchBytes = 256 << 20;  // of a launch whose groups are too wide for that

int64_t errors_bytes(int64_t width) {
  return width * kThreads * static_cast<int64_t>(sizeof(float));
}

int64_t blocks_of(int64_t rows, int64_t columns, int64_t width) {
  return min_of(divide_up(rows * divide_up(columns, width), kTeams), kMaxBlocks);
}

int64_t scratch_blocks(int64_t rows, int64_t columns, int64_t width) {
  return min_of(blocks_of(rows, columns, width),
                max_of<int64_t>(kScratchBytes / errors_bytes(width), 1));
}

}  // namespace

int64_t fit_scratch(int64_t rows, int64_t columns, int64_t width) {
  if (errors_bytes(width) <= kSharedBytes) return 0;
  return scratch_blocks(rows, columns, width) * width * kThreads;
}

void fit_grid(const FitGrid& fit, cudaStream_t stream) {
  const int64_t blocks = blocks_of(fit.rows, fit.columns, fit.width);
  with_numbers<float>(fit.shape, [&](auto numbers) {
    using NumberSet = decltype(numbers);
    if (fit.gram == nullptr || fit.shape.candidates == 1) {
      launch(&fit_by_diagonal<NumberSet>, blocks, kThreads, 0, stream, fit, numbers);
    } else if (errors_bytes(fit.width) <= kSharedBytes) {
      launch(&fit_by_block<true, NumberSet>, blocks, kThreads, errors_bytes(fit.width), stream, fit,
             numbers);
    } else {
      launch(&fit_by_block<false, NumberSet>, scratch_blocks(fit.rows, fit.columns, fit.width),
             kThreads, 0, stream, fit, numbers);
    }
  });
}

void round_scaled(const RoundScaled& group, cudaStream_t stream) {
  with_numbers<float>(group.shape, [&](auto numbers) {
    launch(&round_scaled_kernel<decltype(numbers)>,
           blocks_of(group.rows, group.columns, group.width), kThreads, 0, stream, group, numbers);
  });
}

void quantize(const float* weight, const Levels& levels, uint8_t* codes, cudaStream_t stream) {
  with_numbers<float>(levels.shape, [&](auto numbers) {
    launch(&quantize_kernel<decltype(numbers)>, levels.rows, kThreads, 0, stream, weight, levels,
           numbers, codes);
  });
}

void dequantize(const uint8_t* codes, const Levels& levels, float* weight, cudaStream_t stream) {
  with_numbers<float>(levels.shape, [&](auto numbers) {
    launch(&dequantize_kernel<decltype(numbers)>, levels.rows, kThreads, 0, stream, codes, levels,
           numbers, weight);
  });
}

}  // namespace mlcalib::cuda
