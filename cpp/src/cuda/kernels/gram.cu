// SPDX-License-Identifier: Apache-2.0
// Around the Gram; its products are cuBLAS's (../gram.cpp).
#include "launch.cuh"

namespace mlcalib::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kTile = 32;

__global__ void __launch_bounds__(kThreads) mirror_kernel(float* gram, int64_t channels) {
  __shared__ float tile[kTile][kTile + 1];  // the odd stride spreads a column over the banks
  const int64_t tiles = divide_up(channels, kTile);
  const int64_t top = blockIdx.x / tiles * kTile, left = blockIdx.x % tiles * kTile;
  if (top > left) return;
  const int x = static_cast<int>(threadIdx.x) % kTile, y = static_cast<int>(threadIdx.x) / kTile;
  for (int i = y; i < kTile; i += kThreads / kTile) {
    if (top + i < channels && left + x < channels) {
      tile[i][x] = gram[(top + i) * channels + left + x];
    }
  }
  __syncthreads();
  for (int i = y; i < kTile; i += kThreads / kTile) {
    const int64_t row = left + i, column = top + x;
    if (row < channels && column < row) gram[row * channels + column] = tile[x][i];
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
  part[threadIdx.x] = sum;
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < half) part[threadIdx.x] += part[threadIdx.x + half];
  }
  if (threadIdx.x == 0) sums[blockIdx.x] = part[0];
}

}  // namespace

void mirror(float* gram, int64_t channels, cudaStream_t stream) {
  const int64_t tiles = divide_up(channels, kTile);
  launch(&mirror_kernel, tiles * tiles, kThreads, 0, stream, gram, channels);
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
