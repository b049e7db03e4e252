// SPDX-License-Identifier: Apache-2.0
#include <mlcalib/rtn.hpp>

#include "module.hpp"

namespace mlcalib {

void register_rtn(py::module_& m) {
  m.def("rtn", &rtn, py::arg("weight"), py::arg("spec"), py::arg("gram") = py::none(), NoGil(),
        "Round to nearest on a fitted grid.");
}

}  // namespace mlcalib
