// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <torch/csrc/utils/pybind.h>

namespace py = pybind11;

namespace mlcalib {

/// Arithmetic runs without the GIL.
using NoGil = py::call_guard<py::gil_scoped_release>;

void register_grid(py::module_& m);
void register_linear(py::module_& m);
void register_rtn(py::module_& m);
void register_correction(py::module_& m);
void register_gptq(py::module_& m);
void register_awq(py::module_& m);
void register_statistic(py::module_& m);
void register_packed_linear(py::module_& m);
void register_packing(py::module_& m);
void register_runtime(py::module_& m);

}  // namespace mlcalib
