// SPDX-License-Identifier: Apache-2.0
#include "module.hpp"

#include <c10/util/Exception.h>
#include <torch/csrc/Exceptions.h>

#include <chrono>
#include <exception>
#include <mlcalib/interrupt.hpp>

namespace {

// c10's errors as torch gives them to Python, each of its own type (torch.OutOfMemoryError too).
void translate(std::exception_ptr thrown) {
  try {
    std::rethrow_exception(thrown);
  } catch (const c10::Error&) {
    torch::translate_exception_to_python(thrown);
  }
}

// Lets Python answer signals while the core works, so that Ctrl-C ends a long solve; now and then,
// because the GIL is needed for it. Python answers them on its main thread alone.
void answer_signals() {
  using Clock = std::chrono::steady_clock;
  constexpr std::chrono::milliseconds kPause(50);
  thread_local Clock::time_point last;
  const Clock::time_point now = Clock::now();
  if (now - last < kPause) return;
  last = now;
  const py::gil_scoped_acquire gil;
  if (PyErr_CheckSignals() != 0) throw py::error_already_set();
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = "The compiled core: arithmetic on tensors; it knows no module, language or file.";
  py::module_::import("torch");  // the defaults below are its dtypes
  py::register_local_exception_translator(&translate);
  mlcalib::set_interrupt_check(&answer_signals);
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
