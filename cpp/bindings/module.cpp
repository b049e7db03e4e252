// SPDX-License-Identifier: Apache-2.0
#include "module.hpp"

#include <c10/util/Exception.h>
#include <torch/csrc/Exceptions.h>

#include <exception>

namespace {

// c10's errors as torch gives them to Python, each of its own type (torch.OutOfMemoryError too).
void translate(std::exception_ptr thrown) {
  try {
    std::rethrow_exception(thrown);
  } catch (const c10::Error&) {
    torch::translate_exception_to_python(thrown);
  }
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = "The compiled core: arithmetic on tensors; it knows no module, language or file.";
  py::module_::import("torch");  // the defaults below are its dtypes
  py::register_local_exception_translator(&translate);
  mlcalib::register_grid(m);
  mlcalib::register_linear(m);
  mlcalib::register_rtn(m);
  mlcalib::register_correction(m);
  mlcalib::register_gptq(m);
  mlcalib::register_awq(m);
  mlcalib::register_statistic(m);
  mlcalib::register_packing(m);
  mlcalib::register_packed_linear(m);
  mlcalib::register_runtime(m);
}
