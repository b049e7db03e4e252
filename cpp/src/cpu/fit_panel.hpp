// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <mlcalib/grid.hpp>

namespace mlcalib::cpu {

/// Fits one group: panel float32 [columns, stride] (a view of whole panel rows), importance float32
/// [columns] or undefined. Writes scale and zero, float32 [stride].
void fit_panel(const at::Tensor& panel, const at::Tensor& importance, const GridSpec& spec,
               int64_t rows, const at::Tensor& scale, const at::Tensor& zero);

}  // namespace mlcalib::cpu
