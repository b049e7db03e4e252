// SPDX-License-Identifier: Apache-2.0
#include <mlcalib/linear.hpp>
#include <optional>

#include "module.hpp"

namespace mlcalib {

void register_linear(py::module_& m) {
  py::class_<QuantizedLinear>(m, "QuantizedLinear", "What every solver returns.")
      .def(py::init([](at::Tensor codes, Grid grid, std::optional<double> loss, double damp,
                       int64_t dead_channels, double input_bound, double correction) {
             return QuantizedLinear{.codes = std::move(codes),
                                    .grid = std::move(grid),
                                    .loss = loss,
                                    .damp = damp,
                                    .dead_channels = dead_channels,
                                    .input_bound = input_bound,
                                    .correction = correction};
           }),
           py::arg("codes"), py::arg("grid"), py::kw_only(), py::arg("loss") = py::none(),
           py::arg("damp") = 0.0, py::arg("dead_channels") = 0, py::arg("input_bound") = 0.0,
           py::arg("correction") = 0.0)
      .def_readonly("codes", &QuantizedLinear::codes)
      .def_readonly("grid", &QuantizedLinear::grid)
      .def_readonly("loss", &QuantizedLinear::loss)
      .def_readonly("damp", &QuantizedLinear::damp)
      .def_readonly("dead_channels", &QuantizedLinear::dead_channels)
      .def_readonly("input_bound", &QuantizedLinear::input_bound)
      .def_readonly("correction", &QuantizedLinear::correction)
      .def(
          "replaced",
          [](QuantizedLinear linear, std::optional<Grid> grid, std::optional<double> input_bound,
             std::optional<double> correction) {
            linear.grid = std::move(grid).value_or(linear.grid);
            linear.input_bound = input_bound.value_or(linear.input_bound);
            linear.correction = correction.value_or(linear.correction);
            return linear;
          },
          py::kw_only(), py::arg("grid") = py::none(), py::arg("input_bound") = py::none(),
          py::arg("correction") = py::none(), "The same with what is given in its place.")
      .def(
          "to",
          [](const QuantizedLinear& linear, const at::Device& device) { return linear.to(device); },
          py::arg("device"), NoGil(), "The same on another device.")
      .def("dequantize", &QuantizedLinear::dequantize, NoGil(), "float32 [rows, cols].");

  m.def(
      "losses",
      [](const at::Tensor& weight, const QuantizedLinear& quantized,
         const std::vector<at::Tensor>& grams) { return losses(weight, quantized, grams); },
      py::arg("weight"), py::arg("quantized"), py::arg("grams"), NoGil(),
      "tr(D G Dᵀ) for each Gram, D = weight - dequantized.");
  m.def(
      "losses",
      [](const at::Tensor& change, const std::vector<at::Tensor>& grams) {
        return losses(change, grams);
      },
      py::arg("change"), py::arg("grams"), NoGil(),
      "tr(D G Dᵀ) for each Gram, of a change D [rows, cols] that is given.");
  m.def(
      "losses",
      [](const at::Tensor& change, const std::vector<const Statistic*>& grams) {
        return losses(change, grams);
      },
      py::arg("change"), py::arg("grams"), NoGil(), "The same with statistics 'gram'.");
}

}  // namespace mlcalib
