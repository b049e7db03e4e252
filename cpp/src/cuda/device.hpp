// SPDX-License-Identifier: Apache-2.0
// Tensors as the kernels take them.
#pragma once

#include <ATen/core/Tensor.h>

#include <mlcalib/grid.hpp>
#include <on_device.hpp>
#include <tuple>

#include "kernels/kernels.hpp"

namespace mlcalib::cuda {

/// The data of a float32 tensor, or null where it is undefined.
inline const float* data(const at::Tensor& tensor) {
  return tensor.defined() ? pointer<const float>(tensor) : nullptr;
}

/// What weighs the errors of columns; both undefined where errors count alike.
struct ErrorWeights {
  at::Tensor importance;  ///< float32 [columns], or undefined
  at::Tensor gram;        ///< float32 [columns, columns], contiguous rows, or undefined
};

/// Fits the groups of weight float32 [rows, cols], contiguous: scale and zero, float32
/// [rows, groups].
std::tuple<at::Tensor, at::Tensor> fit(const at::Tensor& weight, const ErrorWeights& weights,
                                       const GridSpec& spec);

}  // namespace mlcalib::cuda
