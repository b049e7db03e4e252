// SPDX-License-Identifier: Apache-2.0
// Functions keep no state and may be called from several threads, also with the same arguments.
#pragma once

#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>

#include <mlcalib/export.hpp>
#include <vector>

namespace MLCALIB_API mlcalib {

struct CorrectionOptions {
  double strength = 0.25;  ///< share of the correction that is taken
  double ridge = 0.05;     ///< added to the Gram's diagonal, as a fraction of its mean

  /// Throws ValueError for fields outside their domain.
  void check() const;
};

/// What weights [rows, cols] of one input should be rounded from, so that their outputs for the
/// quantized model's activations x come near the float model's, for its activations f:
///   W + strength · W E (G + λI)⁻¹,  E = Σ (f − x) xᵀ [cols, cols] (statistic `deviation`),
///   G = Σ x xᵀ.
/// Strength 1 and no ridge give the least squares solution of W f ≈ Ŵ x before rounding, the target
/// of GPTAQ (arXiv 2504.02692) and Qronos (arXiv 2505.11695). Float32, one factorisation; throws as
/// `gptq` does.
std::vector<at::Tensor> corrected(at::TensorList weights, const at::Tensor& gram,
                                  const at::Tensor& deviation,
                                  const CorrectionOptions& options = {});

}  // namespace mlcalib
