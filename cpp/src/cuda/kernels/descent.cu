// SPDX-License-Identifier: Apache-2.0
// Coordinate descent on the codes of one block of columns and one tile of rows. Columns come one
// after the other: a warp decides a column, each lane for up to two rows, and all threads add what
// it changes to the gradients of later columns. Rows come one after the other too, as on the CPU,
// and the arithmetic is the same: so are the codes.
#include "launch.cuh"

namespace mlcalib::cuda {
namespace {

constexpr int kRows = static_cast<int>(DescentBlock::kRows);
constexpr int kColumns = static_cast<int>(DescentBlock::kColumns);
constexpr int kThreads = 128;
constexpr int kWarp = 32;
constexpr unsigned kAll = 0xffffffffU;
constexpr int kSlots = (kRows + kWarp - 1) / kWarp;  // rows of a lane

/// What the threads share; a flag stands behind the moves.
struct Shared {
  float* gradient;  ///< [kColumns][kRows]
  float* output;    ///< [kRows][kRows]
  float* moved;     ///< [kRows]: O times the changes of a column
  float* changed;   ///< whether any is not zero
};
constexpr int64_t kSharedFloats = kColumns * kRows + kRows * kRows + kRows + 1;

__device__ Shared load_shared(const DescentBlock& b) {
  float* const gradient = dynamic_shared();
  float* const output = gradient + kColumns * kRows;
  const int thread = static_cast<int>(threadIdx.x);
  for (int i = thread; i < kRows * kRows; i += kThreads) {
    const int row = i / kRows, other = i % kRows;
    const bool exists = row < b.rows && other < b.rows;
    output[i] = exists ? b.output[row * b.output_stride + other] : 0.0F;
  }
  for (int i = thread; i < b.columns * kRows; i += kThreads) {
    const int row = i % kRows;
    gradient[i] = row < b.rows ? b.gradient[row * b.columns + i / kRows] : 0.0F;
  }
  __syncthreads();
  float* const moved = output + kRows * kRows;
  return {gradient, output, moved, moved + kRows};
}

/// A row of a lane, in one column.
struct Row {
  Level level;
  float value;  ///< ŵ
  float gradient;
  float diagonal;  ///< of O
  Step best;       ///< were it the only one to change
};

template <class NumberSet>
__device__ void find_best(Row& row, float curvature, NumberSet numbers) {
  row.best = best_step(row.value, row.gradient, row.diagonal * curvature, row.level, numbers);
}

/// Rows that do not exist have the value 0 and no gradient: they never change.
template <class NumberSet>
__device__ Row load_row(const DescentBlock& b, const Shared& shared, int column, int row,
                        NumberSet numbers) {
  if (row >= b.rows) return {{1, 0}, 0, 0, 1, {}};
  const int64_t group = row * b.groups + b.group_of[column];
  const Level level{b.scale[group], b.zero[group]};
  const float value =
      value_of(static_cast<float>(b.codes[row * b.stride + column]), level, numbers);
  return {
      level, value, shared.gradient[column * kRows + row], shared.output[row * kRows + row], {}};
}

/// By one warp.
template <class NumberSet>
__device__ void decide_column(const DescentBlock& b, const Shared& shared, int column,
                              NumberSet numbers) {
  const int lane = static_cast<int>(threadIdx.x);
  const float curvature = b.gram[column * b.gram_stride + column];
  Row rows[kSlots];
  float moved[kSlots], taken[kSlots];
  bool changed = false;
#pragma unroll
  for (int slot = 0; slot < kSlots; ++slot) {
    rows[slot] = load_row(b, shared, column, slot * kWarp + lane, numbers);
    moved[slot] = taken[slot] = 0;
  }
#pragma unroll
  for (int slot = 0; slot < kSlots; ++slot) {
    const int count = min_of(static_cast<int>(b.rows) - slot * kWarp, kWarp);
    bool stale = true;
#pragma unroll 1
    for (int owner = 0; owner < count; ++owner) {
      if (stale && slot * kWarp + lane < b.rows) find_best(rows[slot], curvature, numbers);
      const float change = __shfl_sync(kAll, rows[slot].best.change, owner, kWarp);
      stale = change != 0;
      if (!stale) continue;
      changed = true;
      const float* output = shared.output + (slot * kWarp + owner) * kRows + lane;
#pragma unroll
      for (int other = 0; other < kSlots; ++other) {
        const float own = other * kWarp + lane < kRows ? output[other * kWarp] : 0.0F;
        const float felt = own * change;
        moved[other] += felt;
        rows[other].gradient += felt * curvature;
      }
      if (lane != owner) continue;
      taken[slot] = change;
      const float code = code_of(rows[slot].best.unit, rows[slot].level, numbers);
      b.codes[(slot * kWarp + owner) * b.stride + column] = static_cast<uint8_t>(code);
    }
  }
  if (lane == 0) *shared.changed = changed ? 1.0F : 0.0F;
  if (!changed) return;
  if (lane == 0) *b.changed = 1;
#pragma unroll
  for (int slot = 0; slot < kSlots; ++slot) {
    const int row = slot * kWarp + lane;
    if (row >= kRows) continue;
    shared.moved[row] = moved[slot];
    if (row >= b.rows) continue;
    b.felt[row * b.stride + column] += moved[slot];
    b.error[row * b.stride + column] += taken[slot];
  }
}

template <class NumberSet>
__global__ void __launch_bounds__(kThreads, 1) descent_kernel(DescentBlock b, NumberSet numbers) {
  const Shared shared = load_shared(b);
  for (int column = 0; column < b.columns; ++column) {
    if (threadIdx.x < kWarp) decide_column(b, shared, column, numbers);
    __syncthreads();
    if (*shared.changed != 0) {
      const float* gram = b.gram + column * b.gram_stride;
      const int first = (column + 1) * kRows, last = static_cast<int>(b.columns) * kRows;
      for (int i = first + static_cast<int>(threadIdx.x); i < last; i += kThreads) {
        shared.gradient[i] += shared.moved[i % kRows] * gram[i / kRows];
      }
    }
    __syncthreads();
  }
}

}  // namespace

void descent_block(const DescentBlock& block, cudaStream_t stream) {
  with_numbers<float>(block.shape, [&](auto numbers) {
    launch(&descent_kernel<decltype(numbers)>, 1, kThreads,
           kSharedFloats * static_cast<int64_t>(sizeof(float)), stream, block, numbers);
  });
}

}  // namespace mlcalib::cuda
