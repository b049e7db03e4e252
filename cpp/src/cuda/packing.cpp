// SPDX-License-Identifier: Apache-2.0
#include <ATen/ops/empty.h>

#include "../host_device.hpp"
#include "../stubs.hpp"
#include "device.hpp"

namespace mlcalib {
namespace {

at::Tensor pack_cuda(const at::Tensor& codes, int64_t bits) {
  const int64_t rows = codes.size(0), columns = codes.size(1),
                words = divide_up(columns * bits, 32);
  at::Tensor packed = at::empty({rows, words}, codes.options().dtype(at::kInt));
  cuda::on_device_of(codes, [&](cudaStream_t stream) {
    cuda::pack(cuda::pointer<const uint8_t>(codes), rows, columns, bits,
               reinterpret_cast<uint32_t*>(cuda::pointer<int32_t>(packed)), stream);
  });
  return packed;
}

at::Tensor unpack_cuda(const at::Tensor& packed, int64_t bits, int64_t columns) {
  at::Tensor codes = at::empty({packed.size(0), columns}, packed.options().dtype(at::kByte));
  cuda::on_device_of(packed, [&](cudaStream_t stream) {
    cuda::unpack(reinterpret_cast<const uint32_t*>(cuda::pointer<const int32_t>(packed)),
                 packed.size(0), columns, bits, cuda::pointer<uint8_t>(codes), stream);
  });
  return codes;
}

const bool packing_installed = pack_stub.install(cuda::kDevice, &pack_cuda) &&
                               unpack_stub.install(cuda::kDevice, &unpack_cuda);

}  // namespace
}  // namespace mlcalib
