// SPDX-License-Identifier: Apache-2.0
#include <mlcalib/statistic.hpp>
#include <optional>

#include "module.hpp"

namespace mlcalib {

namespace {

std::map<std::string, std::string> adds_of(const Statistic& statistic) {
  static const std::map<Statistic::Part::Adds, std::string> names = {
      {Statistic::Part::Adds::kSum, "sum"},
      {Statistic::Part::Adds::kLeast, "least"},
      {Statistic::Part::Adds::kGreatest, "greatest"},
      {Statistic::Part::Adds::kAlike, "alike"}};
  std::map<std::string, std::string> found;
  for (const Statistic::Part& part : statistic.parts()) found[part.name] = names.at(part.adds);
  return found;
}

}  // namespace

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
      .def("load", &Statistic::load, py::arg("state"), NoGil(), "Replaces the state.")
      .def("packed", &Statistic::packed, py::arg("device"), NoGil(),
           "The tensors as they are kept, with 'tokens', to be added up over processes.")
      .def("load_packed", &Statistic::load_packed, py::arg("packed"), NoGil(),
           "Replaces what is kept by tensors as of packed(), without a copy.")
      .def_property_readonly("adds", &adds_of,
                             "Part → how two of them become one: sum, least, greatest or alike.");
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
