// SPDX-License-Identifier: Apache-2.0
#include <mlcalib/packing.hpp>

#include "module.hpp"

namespace mlcalib {

void register_packing(py::module_& m) {
  m.def("pack", &pack, py::arg("codes"), py::arg("bits"), NoGil(),
        "codes uint8 [rows, cols] as int32 [rows, ceil(cols · bits / 32)], lowest bits first.");
  m.def("unpack", &unpack, py::arg("packed"), py::arg("bits"), py::arg("columns"), NoGil(),
        "The inverse of pack.");
}

}  // namespace mlcalib
