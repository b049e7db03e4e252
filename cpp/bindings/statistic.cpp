// SPDX-License-Identifier: Apache-2.0
#include <mlcalib/statistic.hpp>
#include <optional>

#include "module.hpp"

namespace mlcalib {

void register_statistic(py::module_& m) {
  py::class_<Statistic>(
      m, "Statistic",
      "A summary of activations that adds up over tokens, batches, languages and processes.")
      .def_property_readonly("name", &Statistic::name)
      .def_property_readonly("channels", &Statistic::channels)
      // Another thread may hold the statistic, and wait for the GIL.
      .def_property_readonly("tokens", py::cpp_function(&Statistic::tokens, NoGil()))
      .def_property_readonly("compares", &Statistic::compares)
      .def(
          "update",
          [](Statistic& statistic, const at::Tensor& x,
             const std::optional<at::Tensor>& reference) {
            statistic.update(x, reference.value_or(at::Tensor()));
          },
          py::arg("x"), py::arg("reference") = py::none(), NoGil(),
          "Adds the tokens of x [..., channels].")
      .def("check_finite", &Statistic::check_finite, NoGil(),
           "Throws ValueError for NaN or Inf that no update has found, as on a GPU.")
      .def("merge", &Statistic::merge, py::arg("other"), py::arg("weight") = 1.0, NoGil(),
           "*this += weight · other.")
      .def("rescale", &Statistic::rescale, py::arg("factors"), NoGil(),
           "As if every activation had been multiplied by factors [channels].")
      .def("state", &Statistic::state, NoGil(), "Copies of the named tensors, with 'tokens'.")
      .def("view", &Statistic::view, NoGil(),
           "As state(), without a copy of tensors that are kept so: good until the statistic "
           "changes; not to be written to.")
      .def("load", &Statistic::load, py::arg("state"), NoGil(), "Replaces the state.");
  m.def(
      "make_statistic",
      [](const std::string& name, int64_t channels) { return make_statistic(name, channels); },
      py::arg("name"), py::arg("channels"), "An empty statistic.");
  m.def(
      "update",
      [](const std::vector<Statistic*>& statistics, const at::Tensor& x,
         const std::optional<at::Tensor>& reference) {
        update(statistics, x, reference.value_or(at::Tensor()));
      },
      py::arg("statistics"), py::arg("x"), py::arg("reference") = py::none(), NoGil(),
      "Adds the tokens of x to several statistics in one pass over memory.");
  m.def("statistic_names", &statistic_names);
}

}  // namespace mlcalib
