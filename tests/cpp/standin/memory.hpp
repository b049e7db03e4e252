// SPDX-License-Identifier: Apache-2.0
// The memory of the stand-in device. Tensors carry addresses that no one may read or write; what
// stands in for kernels reaches the same bytes at host_address(). So whatever the host does to a
// tensor of the device by itself is a fault.
#pragma once

#include <c10/core/Device.h>

#include <cstddef>

namespace standin {

inline constexpr c10::DeviceType kType = c10::kPrivateUse1;
inline constexpr c10::DeviceIndex kDevices = 2;
inline constexpr size_t kDeviceBytes = size_t{2} << 30;

/// New memory of a device, full of not-a-numbers. Throws c10::OutOfMemoryError.
void* allocate(size_t bytes, c10::DeviceIndex device);
void release(void* data);

/// Bytes of a device that are not taken.
size_t free_bytes(c10::DeviceIndex device);

/// Where the bytes of device memory can be read and written; null for null. Throws c10::Error for
/// any other memory.
void* host_address(const void* data);

/// Lets a stray access to device memory say what it is, on what is the standard error now, before
/// it ends the process as it would anyway (with the Python stack, where faulthandler was enabled
/// before).
void name_faults();

}  // namespace standin
