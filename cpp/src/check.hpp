// SPDX-License-Identifier: Apache-2.0
// Checks of arguments that several fronts share. Each throws ValueError or TypeError that says what
// was given, what was expected and what to do.
#pragma once

#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>

#include <mlcalib/grid.hpp>
#include <vector>

namespace mlcalib {

/// float32, bfloat16 or float16.
void check_floating(const at::Tensor& tensor, const char* name);

/// A floating matrix without NaN or Inf, as a contiguous float32 copy or view.
at::Tensor check_weight(const at::Tensor& weight);

/// At least one weight, all with the same input channels, on one device; each as check_weight's.
std::vector<at::Tensor> check_weights(at::TensorList weights);

/// A finite float32 matrix [channels, channels], which is called `name`.
void check_gram(const at::Tensor& gram, int64_t channels, const char* name = "gram");

/// A grid whose shapes, types and device fit `matrix`, which is called `name`.
void check_grid(const Grid& grid, const at::Tensor& matrix, const char* name);

/// Throws ValueError where `tensor` is on another device than `other`, which is called `of`.
void check_device(const at::Tensor& tensor, const char* name, const at::Tensor& other,
                  const char* of);

/// Channels that no token excited: zeros on the Gram's diagonal.
int64_t count_dead_channels(const at::Tensor& gram);

/// Throws ValueError that names the first NaN or Inf; `what` says whose it is.
void check_finite(const at::Tensor& tensor, const char* what);

}  // namespace mlcalib
