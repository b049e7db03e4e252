// SPDX-License-Identifier: Apache-2.0
#include "../stubs.hpp"
#include "device.hpp"

namespace mlcalib {
namespace {

cuda::Element element_of(const at::Tensor& x) {
  switch (x.scalar_type()) {
    case at::kBFloat16:
      return cuda::Element::kBFloat16;
    case at::kHalf:
      return cuda::Element::kHalf;
    default:
      return cuda::Element::kFloat;
  }
}

/// x [tokens, channels], whose channels are contiguous.
cuda::Activations activations(const at::Tensor& x) {
  return {.data = cuda::pointer<const void>(x),
          .element = element_of(x),
          .tokens = x.size(0),
          .channels = x.size(1),
          .stride = x.stride(0)};
}

at::Tensor with_contiguous_channels(const at::Tensor& x) {
  return x.stride(1) == 1 ? x : x.contiguous();
}

void moments_update_cuda(const at::Tensor& sum, const at::Tensor& absolute,
                         const at::Tensor& square, const at::Tensor& x) {
  const at::Tensor rows = with_contiguous_channels(x);
  cuda::on_device_of(x, [&](cudaStream_t stream) {
    cuda::moments_update(activations(rows), cuda::pointer<double>(sum),
                         cuda::pointer<double>(absolute), cuda::pointer<double>(square), stream);
  });
}

void range_update_cuda(const at::Tensor& low, const at::Tensor& high, const at::Tensor& x) {
  const at::Tensor rows = with_contiguous_channels(x);
  cuda::on_device_of(x, [&](cudaStream_t stream) {
    cuda::range_update(activations(rows), cuda::pointer<float>(low), cuda::pointer<float>(high),
                       stream);
  });
}

void histogram_update_cuda(const at::Tensor& counts, const at::Tensor& unit, const at::Tensor& x) {
  const at::Tensor rows = with_contiguous_channels(x);
  cuda::on_device_of(x, [&](cudaStream_t stream) {
    cuda::histogram_update(activations(rows), cuda::pointer<const float>(unit),
                           cuda::pointer<double>(counts), stream);
  });
}

void count_nonfinite_cuda(const at::Tensor& found, const at::Tensor& x) {
  const at::Tensor rows = with_contiguous_channels(x);
  cuda::on_device_of(x, [&](cudaStream_t stream) {
    cuda::count_nonfinite(activations(rows), cuda::pointer<int64_t>(found), stream);
  });
}

const bool channels_installed =
    moments_update_stub.install(cuda::kDevice, &moments_update_cuda) &&
    range_update_stub.install(cuda::kDevice, &range_update_cuda) &&
    histogram_update_stub.install(cuda::kDevice, &histogram_update_cuda) &&
    count_nonfinite_stub.install(cuda::kDevice, &count_nonfinite_cuda);

}  // namespace
}  // namespace mlcalib
