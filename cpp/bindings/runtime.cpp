// SPDX-License-Identifier: Apache-2.0
#include <mlcalib/runtime.hpp>

#include "module.hpp"

namespace mlcalib {

void register_runtime(py::module_& m) {
  m.def("isa", &isa, "The instruction set whose kernels run.");
  m.def("available_isas", &available_isas, "Instruction sets of this processor, best first.");
  m.def("device_types", &device_types, "Types of the devices that there are kernels for.");
  m.def("build_info", &build_info, "Version, torch built with, compiler, build type.");
}

}  // namespace mlcalib
