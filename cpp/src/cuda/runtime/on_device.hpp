// SPDX-License-Identifier: Apache-2.0
// All that the backend's glue needs of CUDA itself. The tests build the same glue for a stand-in
// device, with another file of this name.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>

#include <type_traits>

#include "../kernels/kernels.hpp"

namespace mlcalib::cuda {

/// The device whose kernels these are.
inline constexpr c10::DeviceType kDevice = c10::kCUDA;

/// Runs launch(stream) on the device of `tensor`, which becomes the current one meanwhile.
template <class Launch>
void on_device_of(const at::Tensor& tensor, const Launch& launch) {
  const c10::cuda::CUDAGuard guard(tensor.device());
  launch(c10::cuda::getCurrentCUDAStream().stream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

/// The data of a tensor, as kernels reach it; T is const where they only read, and may be void.
template <class T>
T* pointer(const at::Tensor& tensor) {
  if constexpr (std::is_void_v<T>) {
    return tensor.const_data_ptr();
  } else if constexpr (std::is_const_v<T>) {
    return tensor.const_data_ptr<std::remove_const_t<T>>();
  } else {
    return tensor.mutable_data_ptr<T>();
  }
}

}  // namespace mlcalib::cuda
