// SPDX-License-Identifier: Apache-2.0
// Around the Gram; its products are cuBLAS's (../gram.cpp).
#include "launch.cuh"

namespace mlcalib::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kTile = 32;

static_assert(kBlockRows % kTile == 0);  // a tile on the diagonal lies in one block row

/// A block has a tile of the upper triangle, and writes it and its mirror image.
__global__ void __launch_bounds__(kThreads)
    unpack_gram_kernel(const float* sums, int64_t channels, float* gram) {
  __shared__ float tile[kTile][kTile + 1];  // the odd stride spreads a column over the banks
  const int64_t tiles = divide_up(channels, kTile);
  const int64_t top = blockIdx.x / tiles * kTile, left = blockIdx.x % tiles * kTile;
  if (top > left) return;
  const int x = static_cast<int>(threadIdx.x) % kTile, y = static_cast<int>(threadIdx.x) / kTile;
  for (int i = y; i < kTile; i += kThreads / kTile) {
    const int64_t row = top + i, column = left + x;
    if (row >= channels || column >= channels) continue;
    tile[i][x] = sums[packed_row(row, channels) + column];
    if (column >= row) gram[row * channels + column] = tile[i][x];
  }
  __syncthreads();
  for (int i = y; i < kTile; i += kThreads / kTile) {
    const int64_t row = left + i, column = top + x;
    if (row < channels && column < row) gram[row * channels + column] = tile[x][i];
  }
}

/// The sum over the block, which thread 0 has; in a fixed order.
__device__ double block_sum(double own, double* part) {
  __syncthreads();  // part may hold what was summed before
  part[threadIdx.x] = own;
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < half) part[threadIdx.x] += part[threadIdx.x + half];
  }
  return part[threadIdx.x];
}

/// A block has every gridDim-th row, from the diagonal on, and reads D once for all Grams. What is
/// off the diagonal counts twice.
__global__ void __launch_bounds__(kThreads) triangle_dots_kernel(TriangleDots d) {
  __shared__ double part[kThreads];
  double sums[TriangleDots::kGrams] = {};
  for (int64_t row = blockIdx.x; row < d.channels; row += gridDim.x) {
    const int64_t start = packed_row(row, d.channels);
    for (int64_t column = row + threadIdx.x; column < d.channels; column += kThreads) {
      const int64_t at = start + column;
      const double square = static_cast<double>(d.square[at]) * (column == row ? 1 : 2);
#pragma unroll
      for (int i = 0; i < TriangleDots::kGrams; ++i) {
        if (i < d.count) sums[i] += square * static_cast<double>(d.grams[i][at]);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < TriangleDots::kGrams; ++i) {
    if (i >= d.count) continue;
    const double sum = block_sum(sums[i], part);
    if (threadIdx.x == 0) d.sums[static_cast<int64_t>(i) * gridDim.x + blockIdx.x] = sum;
  }
}

__global__ void __launch_bounds__(kThreads)
    dot_kernel(const float* a, const float* b, int64_t n, double* sums) {
  __shared__ double part[kThreads];
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  double sum = 0;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < n; i += step) {
    sum += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  }
  sum = block_sum(sum, part);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

}  // namespace

void unpack_gram(const float* sums, int64_t channels, float* gram, cudaStream_t stream) {
  const int64_t tiles = divide_up(channels, kTile);
  launch(&unpack_gram_kernel, tiles * tiles, kThreads, 0, stream, sums, channels, gram);
}

// Of the channels alone, as below.
int64_t triangle_dot_sums(int64_t channels) { return min_of<int64_t>(channels, 512); }

void triangle_dots(const TriangleDots& dots, cudaStream_t stream) {
  launch(&triangle_dots_kernel, triangle_dot_sums(dots.channels), kThreads, 0, stream, dots);
}

// Of n alone, so that a sum has the same bits on every device.
int64_t dot_sums(int64_t n) {
  constexpr int64_t kEach = 16, kMost = 1024;
  return max_of<int64_t>(min_of(divide_up(n, kEach * kThreads), kMost), 1);
}

void dot(const float* a, const float* b, int64_t n, double* sums, cudaStream_t stream) {
  launch(&dot_kernel, dot_sums(n), kThreads, 0, stream, a, b, n, sums);
}

}  // namespace mlcalib::cuda
