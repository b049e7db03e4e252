// SPDX-License-Identifier: Apache-2.0
#include <c10/util/Exception.h>

#include <mlcalib/packing.hpp>

#include "host_device.hpp"
#include "stubs.hpp"

namespace mlcalib {
namespace {

void check_bits(int64_t bits) {
  TORCH_CHECK_VALUE(2 <= bits && bits <= 8, "bits is ", bits, ", expected 2 to 8.");
}

}  // namespace

at::Tensor pack(const at::Tensor& codes, int64_t bits) {
  check_bits(bits);
  TORCH_CHECK_TYPE(codes.scalar_type() == at::kByte, "codes are ", codes.scalar_type(),
                   ", expected uint8.");
  TORCH_CHECK_VALUE(codes.dim() == 2, "codes have shape ", codes.sizes(),
                    ", expected [rows, cols].");
  if (codes.numel() > 0 && !codes.is_meta()) {
    const int64_t largest = codes.max().item<int64_t>();
    TORCH_CHECK_VALUE(largest < (int64_t{1} << bits), "codes go up to ", largest, ", but ", bits,
                      " bits hold at most ", (int64_t{1} << bits) - 1, ".");
  }
  return pack_stub(codes.device().type(), codes.contiguous(), bits);
}

at::Tensor unpack(const at::Tensor& packed, int64_t bits, int64_t columns) {
  check_bits(bits);
  TORCH_CHECK_TYPE(packed.scalar_type() == at::kInt, "packed codes are ", packed.scalar_type(),
                   ", expected int32.");
  TORCH_CHECK_VALUE(
      columns >= 0 && packed.dim() == 2 && packed.size(1) == divide_up(columns * bits, 32),
      "packed codes have shape ", packed.sizes(), ", expected [rows, ",
      divide_up(columns * bits, 32), "] for ", columns, " columns of ", bits, " bits.");
  return unpack_stub(packed.device().type(), packed.contiguous(), bits, columns);
}

}  // namespace mlcalib
