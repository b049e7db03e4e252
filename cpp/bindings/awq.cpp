// SPDX-License-Identifier: Apache-2.0
#include <mlcalib/awq.hpp>

#include "module.hpp"

namespace mlcalib {

void register_awq(py::module_& m) {
  const AwqOptions defaults;
  py::class_<LinearGroup>(m, "LinearGroup", "Linears that read the same input, and its Gram.")
      .def(py::init<std::vector<at::Tensor>, at::Tensor>(), py::arg("weights"), py::arg("gram"))
      .def_readonly("weights", &LinearGroup::weights)
      .def_readonly("gram", &LinearGroup::gram);

  py::class_<AwqOptions>(m, "AwqOptions", "Options of awq_scale.")
      .def(py::init([](const GridSpec& grid, int64_t points, int64_t exact, int64_t sketch) {
             const AwqOptions options{grid, points, exact, sketch};
             options.check();
             return options;
           }),
           py::arg("grid") = defaults.grid, py::arg("points") = defaults.points,
           py::arg("exact") = defaults.exact, py::arg("sketch") = defaults.sketch)
      .def_readonly("grid", &AwqOptions::grid)
      .def_readonly("points", &AwqOptions::points)
      .def_readonly("exact", &AwqOptions::exact)
      .def_readonly("sketch", &AwqOptions::sketch);

  py::class_<AwqScale>(m, "AwqScale", "What awq_scale found.")
      .def_readonly("scale", &AwqScale::scale)
      .def_readonly("exponent", &AwqScale::exponent)
      .def_readonly("loss", &AwqScale::loss)
      .def_readonly("unscaled", &AwqScale::unscaled)
      .def_readonly("scores", &AwqScale::scores);

  m.def("awq_candidates", &awq_candidates, py::arg("mean"), py::arg("points") = defaults.points,
        py::arg("source_of") = py::none(), NoGil(), "Candidate scales, float32 [points, cols].");
  m.def("awq_scale", &awq_scale, py::arg("groups"), py::arg("mean"), py::arg("options") = defaults,
        py::arg("source_of") = py::none(), NoGil(),
        "The best candidate scale for linears whose inputs one source scales.");
  m.def("awq_clip", &awq_clip, py::arg("weight"), py::arg("gram"), py::arg("spec"), NoGil(),
        "The grid of the shrunk ranges of least output error.");
}

}  // namespace mlcalib
