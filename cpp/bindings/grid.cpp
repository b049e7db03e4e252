// SPDX-License-Identifier: Apache-2.0
#include <mlcalib/grid.hpp>

#include "module.hpp"

namespace mlcalib {

void register_grid(py::module_& m) {
  const GridSpec defaults;
  py::class_<GridSpec>(m, "GridSpec",
                       "The values a weight may take: 2^bits levels per group of input channels.")
      .def(py::init([](int64_t bits, int64_t group_size, bool symmetric, const std::string& range,
                       at::ScalarType scale_dtype, const std::string& numbers, double global_scale,
                       int64_t super_block, int64_t scale_bits, bool per_tensor) {
             const GridSpec spec{bits,         group_size,
                                 symmetric,    parse_range(range),
                                 scale_dtype,  parse_numbers(numbers),
                                 global_scale, super_block,
                                 scale_bits,   per_tensor};
             spec.check();
             return spec;
           }),
           py::arg("bits") = defaults.bits, py::arg("group_size") = defaults.group_size,
           py::arg("symmetric") = defaults.symmetric,
           py::arg("range") = std::string(to_string(defaults.range)),
           py::arg("scale_dtype") = defaults.scale_dtype,
           py::arg("numbers") = std::string(to_string(defaults.numbers)),
           py::arg("global_scale") = defaults.global_scale,
           py::arg("super_block") = defaults.super_block,
           py::arg("scale_bits") = defaults.scale_bits, py::arg("per_tensor") = defaults.per_tensor)
      .def_readonly("bits", &GridSpec::bits)
      .def_readonly("group_size", &GridSpec::group_size)
      .def_readonly("symmetric", &GridSpec::symmetric)
      .def_property_readonly(
          "range", [](const GridSpec& spec) { return std::string(to_string(spec.range)); })
      .def_readonly("scale_dtype", &GridSpec::scale_dtype)
      .def_property_readonly(
          "numbers", [](const GridSpec& spec) { return std::string(to_string(spec.numbers)); })
      .def_readonly("global_scale", &GridSpec::global_scale)
      .def_readonly("super_block", &GridSpec::super_block)
      .def_readonly("scale_bits", &GridSpec::scale_bits)
      .def_readonly("per_tensor", &GridSpec::per_tensor)
      .def_property_readonly("has_minima", &GridSpec::has_minima)
      .def("groups", &GridSpec::groups, py::arg("channels"),
           "Number of groups in a row of `channels`; the last may be shorter.")
      .def(py::pickle(
          [](const GridSpec& spec) {
            return py::make_tuple(spec.bits, spec.group_size, spec.symmetric,
                                  std::string(to_string(spec.range)), spec.scale_dtype,
                                  std::string(to_string(spec.numbers)), spec.global_scale,
                                  spec.super_block, spec.scale_bits, spec.per_tensor);
          },
          [](const py::tuple& state) {
            return GridSpec{
                state[0].cast<int64_t>(),        state[1].cast<int64_t>(),
                state[2].cast<bool>(),           parse_range(state[3].cast<std::string>()),
                state[4].cast<at::ScalarType>(), parse_numbers(state[5].cast<std::string>()),
                state[6].cast<double>(),         state[7].cast<int64_t>(),
                state[8].cast<int64_t>(),        state[9].cast<bool>()};
          }));

  py::class_<Grid>(m, "Grid", "scale float32 and zero uint8 (float32 minima), both [rows, groups].")
      .def(py::init<at::Tensor, at::Tensor, GridSpec>(), py::arg("scale"), py::arg("zero"),
           py::arg("spec"))
      .def_readonly("scale", &Grid::scale)
      .def_readonly("zero", &Grid::zero)
      // A copy: a reference would keep the grid, and its codes, for as long as the spec.
      .def_property_readonly("spec", [](const Grid& grid) { return grid.spec; });

  m.def(
      "with_global_scale",
      [](const GridSpec& spec, const std::vector<at::Tensor>& weights) {
        return with_global_scale(spec, at::TensorList(weights));
      },
      py::arg("spec"), py::arg("weights"), NoGil(),
      "The spec with the global_scale that weights ask for together.");
  m.def("nested_numbers", &nested_numbers,
        "The numbers of scales that are quantized themselves, float32 [256].");
  m.def("fit_grid", &fit_grid, py::arg("weight"), py::arg("spec"), py::arg("gram") = py::none(),
        NoGil(), "The grid of weight [rows, cols]; gram [cols, cols] is needed for range='gram'.");
  m.def("quantize", &quantize, py::arg("weight"), py::arg("grid"), NoGil(),
        "Nearest codes, uint8 [rows, cols].");
  m.def("dequantize", &dequantize, py::arg("codes"), py::arg("grid"), NoGil(),
        "float32 [rows, cols].");
}

}  // namespace mlcalib
