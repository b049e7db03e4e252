// SPDX-License-Identifier: Apache-2.0
#include <mlcalib/runtime.hpp>
#include <mlcalib/version.hpp>

#include "cpu/kernels/kernels.hpp"

namespace mlcalib {

std::string isa() { return cpu::kernels().name; }

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const cpu::KernelTable* table : cpu::available_kernels()) names.emplace_back(table->name);
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
