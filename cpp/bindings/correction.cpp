// SPDX-License-Identifier: Apache-2.0
#include <mlcalib/correction.hpp>

#include "module.hpp"

namespace mlcalib {

void register_correction(py::module_& m) {
  const CorrectionOptions defaults;
  py::class_<CorrectionOptions>(m, "CorrectionOptions", "Options of corrected.")
      .def(py::init([](double strength, double ridge) {
             const CorrectionOptions options{.strength = strength, .ridge = ridge};
             options.check();
             return options;
           }),
           py::arg("strength") = defaults.strength, py::arg("ridge") = defaults.ridge)
      .def_readonly("strength", &CorrectionOptions::strength)
      .def_readonly("ridge", &CorrectionOptions::ridge);
  m.def(
      "corrected",
      [](const std::vector<at::Tensor>& weights, const at::Tensor& gram,
         const at::Tensor& deviation, const CorrectionOptions& options) {
        return corrected(at::TensorList(weights), gram, deviation, options);
      },
      py::arg("weights"), py::arg("gram"), py::arg("deviation"), py::arg("options") = defaults,
      NoGil(),
      "Weights whose outputs for the quantized model's activations are the float model's.");
}

}  // namespace mlcalib
