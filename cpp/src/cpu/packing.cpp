// SPDX-License-Identifier: Apache-2.0
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include "../host_device.hpp"
#include "../stubs.hpp"

namespace mlcalib {
namespace {

at::Tensor pack_cpu(const at::Tensor& codes, int64_t bits) {
  const int64_t rows = codes.size(0), columns = codes.size(1),
                words = divide_up(columns * bits, 32);
  at::Tensor packed = at::empty({rows, words}, codes.options().dtype(at::kInt));
  const uint8_t* from = codes.const_data_ptr<uint8_t>();
  int32_t* to = packed.data_ptr<int32_t>();
  at::parallel_for(0, rows, 16, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      uint64_t buffer = 0;  // `filled` bits wait in it for the next word
      int64_t filled = 0, word = r * words;
      for (int64_t c = 0; c < columns; ++c) {
        buffer |= uint64_t{from[r * columns + c]} << filled;
        filled += bits;
        if (filled >= 32) {
          to[word++] = static_cast<int32_t>(static_cast<uint32_t>(buffer));
          buffer >>= 32;
          filled -= 32;
        }
      }
      if (filled > 0) to[word] = static_cast<int32_t>(static_cast<uint32_t>(buffer));
    }
  });
  return packed;
}

at::Tensor unpack_cpu(const at::Tensor& packed, int64_t bits, int64_t columns) {
  const int64_t rows = packed.size(0), words = packed.size(1);
  at::Tensor codes = at::empty({rows, columns}, packed.options().dtype(at::kByte));
  const int32_t* from = packed.const_data_ptr<int32_t>();
  uint8_t* to = codes.data_ptr<uint8_t>();
  const uint64_t mask = (uint64_t{1} << bits) - 1;
  at::parallel_for(0, rows, 16, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      uint64_t buffer = 0;
      int64_t filled = 0, word = r * words;
      for (int64_t c = 0; c < columns; ++c) {
        if (filled < bits) {
          buffer |= uint64_t{static_cast<uint32_t>(from[word++])} << filled;
          filled += 32;
        }
        to[r * columns + c] = static_cast<uint8_t>(buffer & mask);
        buffer >>= bits;
        filled -= bits;
      }
    }
  });
  return codes;
}

const bool packing_installed =
    pack_stub.install(at::kCPU, &pack_cpu) && unpack_stub.install(at::kCPU, &unpack_cpu);

}  // namespace
}  // namespace mlcalib
