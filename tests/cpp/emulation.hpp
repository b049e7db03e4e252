// SPDX-License-Identifier: Apache-2.0
// What the CUDA kernels need of CUDA, on the CPU: blocks run one after another, the threads of a
// block as fibers that take turns at barriers and shuffles. Included before every .cu file that is
// compiled here as C++. A kernel that a GPU would hang on, or that shuffles with lanes that have
// left, stops the test.
#pragma once

#include <cstdint>
#include <cstring>
#include <functional>

#define __global__
#define __device__
#define __host__
#define __shared__ static  // blocks do not overlap
#define __launch_bounds__(...)

typedef struct CUstream_st* cudaStream_t;

namespace mlcalib::cuda {
namespace emulation {

struct Index {
  unsigned x;
};

/// Of the thread that runs.
extern Index thread_index, block_index, grid_size;

void run(int64_t blocks, int threads, int64_t shared_bytes, const std::function<void()>& kernel);

/// The dynamic shared memory of the block that runs; not-a-numbers at first.
float* shared_memory();

/// Waits for all threads of the block that have not left.
void synchronise();

/// What the thread of lane `from` gives, once all lanes of `mask` are here.
uint64_t exchange(unsigned mask, uint64_t value, unsigned from);

template <class T>
T exchange_value(unsigned mask, T value, unsigned from) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = exchange(mask, bits, from);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace emulation

inline emulation::Index &threadIdx = emulation::thread_index, &blockIdx = emulation::block_index,
                        &gridDim = emulation::grid_size;

/// One thread runs at a time.
inline uint32_t atomicAdd(uint32_t* to, uint32_t value) {
  const uint32_t before = *to;
  *to += value;
  return before;
}

inline void add_atomically(uint64_t* to, uint64_t value) { *to += value; }

inline void __syncthreads() { emulation::synchronise(); }

template <class T>
T __shfl_sync(unsigned mask, T value, int lane, int width) {
  const unsigned own = threadIdx.x % 32, each = static_cast<unsigned>(width);
  return emulation::exchange_value(mask, value,
                                   own / each * each + static_cast<unsigned>(lane) % each);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int) {
  return emulation::exchange_value(mask, value, threadIdx.x % 32 ^ static_cast<unsigned>(bits));
}

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), int64_t blocks, int threads, int64_t shared_bytes,
            cudaStream_t, const Arguments&... arguments) {
  if (blocks == 0) return;
  emulation::run(blocks, threads, shared_bytes, [&] { kernel(arguments...); });
}

inline float* dynamic_shared() { return emulation::shared_memory(); }

}  // namespace mlcalib::cuda
