// SPDX-License-Identifier: Apache-2.0
#include <mlcalib/runtime.hpp>
#include <mlcalib/version.hpp>

#include "cpu/kernels/kernels.hpp"
#include "stubs.hpp"

namespace mlcalib {

std::string isa() { return cpu::kernels().name; }

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const cpu::KernelTable* table : cpu::available_kernels()) names.emplace_back(table->name);
  return names;
}

std::vector<std::string> device_types() {
  std::vector<std::string> names;
  for (int i = 0; i < c10::COMPILE_TIME_MAX_DEVICE_TYPES; ++i) {
    const auto type = static_cast<c10::DeviceType>(i);
    if (gptq_stub.has(type)) names.push_back(c10::DeviceTypeName(type, /*lower_case=*/true));
  }
  return names;
}

#ifndef MLCALIB_CUDA_VERSION
#define MLCALIB_CUDA_VERSION "none"
#endif

std::map<std::string, std::string> build_info() {
  return {{"version", MLCALIB_VERSION},
          {"torch", MLCALIB_TORCH_VERSION},
          {"compiler", "GCC-compatible " __VERSION__},
          {"build_type", MLCALIB_BUILD_TYPE},
          {"cuda", MLCALIB_CUDA_VERSION}};
}

}  // namespace mlcalib
