// SPDX-License-Identifier: Apache-2.0
#include <mlcalib/packed_linear.hpp>

#include "module.hpp"

namespace mlcalib {

void register_packed_linear(py::module_& m) {
  m.def("pack_linear", &pack_linear, py::arg("quantized"), NoGil(),
        "Codes and grid in a layout for packed_linear: uint8 [tiles, bytes].");
  m.def("unpack_linear", &unpack_linear, py::arg("packed"), py::arg("rows"), py::arg("columns"),
        py::arg("spec"), NoGil(), "The inverse of pack_linear.");
  m.def("packed_linear", &packed_linear, py::arg("x"), py::arg("packed"), py::arg("rows"),
        py::arg("columns"), py::arg("spec"), py::arg("bias") = py::none(), NoGil(),
        "x Wᵀ + bias [..., rows], of x's dtype, of x [..., columns] and a packed weight.");
}

}  // namespace mlcalib
