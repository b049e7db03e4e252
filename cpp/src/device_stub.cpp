// SPDX-License-Identifier: Apache-2.0
#include "device_stub.hpp"

#include <c10/util/Exception.h>

namespace mlcalib {

void throw_missing_kernel(const char* kernel, c10::DeviceType device) {
  TORCH_CHECK_NOT_IMPLEMENTED(
      false, "mlcalib: the kernel ", kernel, " has no implementation for the device ", device,
      "; move the tensors to the CPU, or build mlcalib with a backend for it.");
}

}  // namespace mlcalib
