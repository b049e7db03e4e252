// SPDX-License-Identifier: Apache-2.0
// What the CUDA backend's glue needs of a device, of the stand-in: kernels run on the CPU, one at a
// time, by emulation.cpp. A kernel that gets a tensor of another device stops the call, where a GPU
// would read or write memory that is not its own.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/DeviceGuard.h>

#include <mutex>
#include <type_traits>

#include "../memory.hpp"
#include "cuda/kernels/kernels.hpp"

namespace mlcalib::cuda {

inline constexpr c10::DeviceType kDevice = c10::kPrivateUse1;

template <class Launch>
void on_device_of(const at::Tensor& tensor, const Launch& launch) {
  static std::mutex running;  // the emulation has one set of threads
  const std::lock_guard lock(running);
  const c10::DeviceGuard guard(tensor.device());
  launch(nullptr);
}

template <class T>
T* pointer(const at::Tensor& tensor) {
  TORCH_CHECK(tensor.device().type() == kDevice, "a kernel was given a tensor on ",
              tensor.device());
  const void* data = nullptr;
  if constexpr (std::is_void_v<T>) {
    data = tensor.const_data_ptr();
  } else {
    data = tensor.const_data_ptr<std::remove_const_t<T>>();  // checks the dtype
  }
  return static_cast<T*>(standin::host_address(data));
}

}  // namespace mlcalib::cuda
