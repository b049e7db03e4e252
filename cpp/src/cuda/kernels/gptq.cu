// SPDX-License-Identifier: Apache-2.0
// The triangular loop of one block of columns, in one launch. A row is the work of a team whose
// lanes hold its targets in registers, every kLanes-th column each. Right-looking: a decided
// column's error goes to all lanes at once, which add it to their later columns. Each target
// gathers the same products in the same order as in the CPU's left-looking loop, so the codes are
// the same.
#include "launch.cuh"

namespace mlcalib::cuda {
namespace {

constexpr int kColumns = GptqBlock::kColumns;
constexpr int kLanes = 8;
constexpr int kSlots = kColumns / kLanes;  // columns of a lane
constexpr int kThreads = 256;
constexpr int kRows = kThreads / kLanes;
constexpr int64_t kFactorBytes = kColumns * kColumns * static_cast<int64_t>(sizeof(float));
using Lanes = Team<kLanes>;

/// M, zero on and below the diagonal and beyond the last column: there, nothing is fed back.
__device__ void load_factor(const GptqBlock& b, float* factor) {
  for (int i = static_cast<int>(threadIdx.x); i < kColumns * kColumns; i += kThreads) {
    const int from = i / kColumns, to = i % kColumns;
    factor[i] = from < to && to < b.columns ? b.factor[from * b.columns + to] : 0.0F;
  }
  __syncthreads();
}

/// What a lane holds of its row.
struct Columns {
  float weight[kSlots];
  float target[kSlots];
  Level level[kSlots];
};

__device__ Columns load_columns(const GptqBlock& b, int64_t row) {
  Columns held;
#pragma unroll
  for (int slot = 0; slot < kSlots; ++slot) {
    const int column = slot * kLanes + Lanes::lane();
    const bool exists = column < b.columns;
    const int64_t group = exists ? row * b.groups + b.group_of[column] : 0;
    held.weight[slot] = exists ? b.weight[row * b.stride + column] : 0.0F;
    held.target[slot] = exists ? b.target[row * b.target_stride + column] : 0.0F;
    held.level[slot] = exists ? Level{b.scale[group], b.zero[group]} : Level{1, 0};
  }
  return held;
}

template <class NumberSet>
__global__ void __launch_bounds__(kThreads) gptq_kernel(GptqBlock b, NumberSet numbers) {
  float* const factor = dynamic_shared();
  load_factor(b, factor);
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kRows + Lanes::in_block();
  if (row >= b.rows) return;

  Columns held = load_columns(b, row);
  double energy = 0, square = 0;
#pragma unroll
  for (int slot = 0; slot < kSlots; ++slot) {
    if (slot * kLanes >= b.columns) break;
    const int own = slot * kLanes + Lanes::lane();
    const float diagonal = own < b.columns ? b.diagonal[own] : 0.0F;
    Decision mine{};
#pragma unroll 1  // sixteen copies of the body are enough code
    for (int owner = 0; owner < kLanes; ++owner) {
      // All lanes decide; only the owner's column is complete.
      const Decision now =
          decide(held.weight[slot], held.target[slot], held.level[slot], diagonal, numbers);
      if (Lanes::lane() == owner) mine = now;
      const float error = Lanes::from(now.error, owner);
      const float* row_of_factor = factor + (slot * kLanes + owner) * kColumns + Lanes::lane();
#pragma unroll
      for (int later = slot; later < kSlots; ++later) {
        held.target[later] = fed_back(held.target[later], error, row_of_factor[later * kLanes]);
      }
    }
    if (own < b.columns) {
      b.error[row * b.stride + own] = mine.error;
      b.codes[row * b.stride + own] =
          static_cast<uint8_t>(code_of(mine.unit, held.level[slot], numbers));
      energy += static_cast<double>(mine.residual * mine.residual);
      square += static_cast<double>(mine.error * mine.error);
    }
  }
  energy = Lanes::sum(energy);
  square = Lanes::sum(square);
  if (Lanes::lane() == 0) {
    b.energy[row] += energy;
    b.square[row] += square;
  }
}

}  // namespace

void gptq_block(const GptqBlock& block, cudaStream_t stream) {
  with_numbers<float>(block.shape, [&](auto numbers) {
    launch(&gptq_kernel<decltype(numbers)>, divide_up(block.rows, kRows), kThreads, kFactorBytes,
           stream, block, numbers);
  });
}

}  // namespace mlcalib::cuda
