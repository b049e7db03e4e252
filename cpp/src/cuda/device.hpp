// SPDX-License-Identifier: Apache-2.0
// Tensors as the kernels take them, and the launch on their device's current stream.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>

#include <mlcalib/grid.hpp>
#include <tuple>

#include "kernels/kernels.hpp"

namespace mlcalib::cuda {

/// Runs launch(stream) on the device of `tensor`, which becomes the current one meanwhile.
template <class Launch>
void on_device_of(const at::Tensor& tensor, const Launch& launch) {
  const c10::cuda::CUDAGuard guard(tensor.device());
  launch(c10::cuda::getCurrentCUDAStream().stream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

/// The data of a float32 tensor, or null where it is undefined.
inline const float* data(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr<float>() : nullptr;
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
