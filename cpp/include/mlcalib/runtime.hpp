// SPDX-License-Identifier: Apache-2.0
// Functions keep no state and may be called from several threads, also with the same arguments.
#pragma once

#include <map>
#include <mlcalib/export.hpp>
#include <string>
#include <vector>

namespace MLCALIB_API mlcalib {

/// The instruction set whose kernels run: MLCALIB_ISA, or the best that the processor has.
std::string isa();

/// Instruction sets that this processor can run, best first.
std::vector<std::string> available_isas();

/// Types of the devices that there are kernels for, as torch calls them: "cpu", and "cuda" where
/// the CUDA backend was built.
std::vector<std::string> device_types();

/// version (mlcalib/version.hpp), torch (built with), compiler, build type, cuda ("none", or
/// version and architectures).
std::map<std::string, std::string> build_info();

}  // namespace mlcalib
