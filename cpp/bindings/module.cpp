// SPDX-License-Identifier: Apache-2.0
#include "module.hpp"

#include <c10/util/Exception.h>

#include <exception>
#include <utility>

namespace {

// c10's errors as Python's; without the backtrace, which says nothing to a Python user.
void translate(std::exception_ptr thrown) {
  try {
    std::rethrow_exception(std::move(thrown));
  } catch (const c10::ValueError& error) {
    py::set_error(PyExc_ValueError, error.what_without_backtrace());
  } catch (const c10::TypeError& error) {
    py::set_error(PyExc_TypeError, error.what_without_backtrace());
  } catch (const c10::NotImplementedError& error) {
    py::set_error(PyExc_NotImplementedError, error.what_without_backtrace());
  } catch (const c10::LinAlgError& error) {
    py::set_error(py::module_::import("torch").attr("linalg").attr("LinAlgError"),
                  error.what_without_backtrace());
  } catch (const c10::Error& error) {
    py::set_error(PyExc_RuntimeError, error.what_without_backtrace());
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
