// SPDX-License-Identifier: Apache-2.0
// What the kernels share on the device: launches, shared memory, and teams of consecutive lanes.
// Without nvcc, the tests' emulation.hpp stands in for CUDA.
#pragma once

#ifdef __CUDACC__
#include <cuda_runtime.h>
#endif

#include "kernels.hpp"

namespace mlcalib::cuda {
namespace {

/// Blocks that a launch along x may have.
constexpr int64_t kMaxBlocks = 0x7fffffff;

#ifdef __CUDACC__
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), int64_t blocks, int threads, int64_t shared_bytes,
            cudaStream_t stream, const Arguments&... arguments) {
  if (blocks == 0) return;  // nothing to do, which a launch may not say
  // Beyond 48 KiB a kernel has to ask.
  constexpr int64_t kUnasked = 48 << 10;
  if (shared_bytes > kUnasked) {
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                         static_cast<int>(shared_bytes));
  }
  kernel<<<static_cast<unsigned>(blocks), threads, static_cast<size_t>(shared_bytes), stream>>>(
      arguments...);
}

__device__ inline void add_atomically(uint64_t* to, uint64_t value) {
  atomicAdd(reinterpret_cast<unsigned long long*>(to), static_cast<unsigned long long>(value));
}

__device__ inline float* dynamic_shared() {
  extern __shared__ float4 dynamic_shared_memory[];
  return reinterpret_cast<float*>(dynamic_shared_memory);
}
#endif

/// `kLanes` consecutive lanes of a warp that work on one thing.
template <int kLanes>
struct Team {
  static_assert(kLanes > 1 && kLanes < 32 && (kLanes & (kLanes - 1)) == 0);

  __device__ static int lane() { return static_cast<int>(threadIdx.x) % kLanes; }
  __device__ static int in_block() { return static_cast<int>(threadIdx.x) / kLanes; }

  /// The lanes of this team: others may have left, or be elsewhere.
  __device__ static unsigned mask() {
    return ((1U << kLanes) - 1U) << (threadIdx.x % 32 / kLanes * kLanes);
  }

  template <class T>
  __device__ static T from(T value, int lane) {
    return __shfl_sync(mask(), value, lane, kLanes);
  }

  /// The value of the lane whose number differs in `bits`.
  template <class T>
  __device__ static T across(T value, int bits) {
    return __shfl_xor_sync(mask(), value, bits, kLanes);
  }

  template <class T>
  __device__ static T sum(T value) {
    for (int bits = kLanes / 2; bits > 0; bits /= 2) value += across(value, bits);
    return value;
  }
};

}  // namespace
}  // namespace mlcalib::cuda
