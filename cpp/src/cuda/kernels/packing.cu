// SPDX-License-Identifier: Apache-2.0
// One thread for each word that is written, or each code.
#include "launch.cuh"

namespace mlcalib::cuda {
namespace {

constexpr int kThreads = 128;

__global__ void __launch_bounds__(kThreads)
    pack_kernel(const uint8_t* codes, int64_t columns, int64_t bits, uint32_t* packed) {
  const int64_t row = blockIdx.x, words = divide_up(columns * bits, 32);
  for (int64_t word = threadIdx.x; word < words; word += kThreads) {
    packed[row * words + word] = packed_word(codes + row * columns, columns, bits, word);
  }
}

__global__ void __launch_bounds__(kThreads)
    unpack_kernel(const uint32_t* packed, int64_t columns, int64_t bits, uint8_t* codes) {
  const int64_t row = blockIdx.x, words = divide_up(columns * bits, 32);
  for (int64_t c = threadIdx.x; c < columns; c += kThreads) {
    codes[row * columns + c] = unpacked_code(packed + row * words, bits, c);
  }
}

}  // namespace

void pack(const uint8_t* codes, int64_t rows, int64_t columns, int64_t bits, uint32_t* packed,
          cudaStream_t stream) {
  launch(&pack_kernel, rows, kThreads, 0, stream, codes, columns, bits, packed);
}

void unpack(const uint32_t* packed, int64_t rows, int64_t columns, int64_t bits, uint8_t* codes,
            cudaStream_t stream) {
  launch(&unpack_kernel, rows, kThreads, 0, stream, packed, columns, bits, codes);
}

}  // namespace mlcalib::cuda
