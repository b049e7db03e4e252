// SPDX-License-Identifier: Apache-2.0
#include <mlcalib/gptq.hpp>

#include "module.hpp"

namespace mlcalib {

void register_gptq(py::module_& m) {
  const GptqOptions defaults;
  py::class_<GptqOptions>(m, "GptqOptions", "Options of gptq.")
      .def(py::init([](const GridSpec& grid, double damp, int64_t block, const std::string& order,
                       bool static_grid, int64_t refit, double output_damp, int64_t sweeps) {
             const GptqOptions options{.grid = grid,
                                       .damp = damp,
                                       .block = block,
                                       .order = parse_order(order),
                                       .refit = refit,
                                       .sweeps = sweeps,
                                       .output_damp = output_damp,
                                       .static_grid = static_grid};
             options.check();
             return options;
           }),
           py::arg("grid") = defaults.grid, py::arg("damp") = defaults.damp,
           py::arg("block") = defaults.block,
           py::arg("order") = std::string(to_string(defaults.order)),
           py::arg("static_grid") = defaults.static_grid, py::arg("refit") = defaults.refit,
           py::arg("output_damp") = defaults.output_damp, py::arg("sweeps") = defaults.sweeps)
      .def_readonly("grid", &GptqOptions::grid)
      .def_readonly("damp", &GptqOptions::damp)
      .def_readonly("block", &GptqOptions::block)
      .def_property_readonly(
          "order", [](const GptqOptions& options) { return std::string(to_string(options.order)); })
      .def_readonly("static_grid", &GptqOptions::static_grid)
      .def_readonly("refit", &GptqOptions::refit)
      .def_readonly("sweeps", &GptqOptions::sweeps)
      .def_readonly("output_damp", &GptqOptions::output_damp);

  m.def("gptq", py::overload_cast<const at::Tensor&, const at::Tensor&, const GptqOptions&>(&gptq),
        py::arg("weight"), py::arg("gram"), py::arg("options") = defaults, NoGil(),
        "GPTQ of weight [rows, cols] against gram [cols, cols].");
  m.def(
      "gptq",
      [](const std::vector<at::Tensor>& weights, const at::Tensor& gram,
         const GptqOptions& options) { return gptq(at::TensorList(weights), gram, options); },
      py::arg("weights"), py::arg("gram"), py::arg("options") = defaults, NoGil(),
      "Linears that read the same input, solved with one factorisation.");
  m.def(
      "gptq",
      [](const std::vector<at::Tensor>& weights, const at::Tensor& gram,
         const std::vector<at::Tensor>& outputs, const GptqOptions& options) {
        return gptq(at::TensorList(weights), gram, at::TensorList(outputs), options);
      },
      py::arg("weights"), py::arg("gram"), py::arg("outputs"), py::arg("options") = defaults,
      NoGil(), "Linears that read the same input, with a Gram of their outputs' gradients each.");
}

}  // namespace mlcalib
