// SPDX-License-Identifier: Apache-2.0
// Functions keep no state and may be called from several threads, also with the same arguments.
#pragma once

#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>

#include <mlcalib/export.hpp>
#include <mlcalib/grid.hpp>
#include <mlcalib/statistic.hpp>
#include <optional>
#include <vector>

namespace MLCALIB_API mlcalib {

/// What every solver returns.
struct QuantizedLinear {
  at::Tensor codes;  ///< uint8 [rows, cols], in the weight's own column order
  Grid grid;
  std::optional<double> loss;  ///< tr(D G Dᵀ), D = weight − dequantized; absent without a Gram
  double damp = 0;             ///< damping used, a fraction of the mean of the Gram's diagonal
  int64_t dead_channels = 0;   ///< channels that no calibration token excited (rounded)
  /// Largest magnitude of its input that a checkpoint with static activations holds; 0: not known.
  double input_bound = 0;
  /// Strength of the correction for errors of its input that it was solved with; see
  /// correction.hpp.
  double correction = 0;

  at::Tensor dequantize() const { return mlcalib::dequantize(codes, grid); }
  /// The same on another device; the tensors themselves where they are there already.
  QuantizedLinear to(at::Device device) const {
    return {codes.to(device),
            {grid.scale.to(device), grid.zero.to(device), grid.spec},
            loss,
            damp,
            dead_channels,
            input_bound,
            correction};
  }
};

/// tr(D G Dᵀ) for each Gram [cols, cols], D = weight − dequantized: ⟨DᵀD, G⟩, so that further Grams
/// (one per language) cost cols² each. Throws ValueError where shapes differ.
std::vector<double> losses(const at::Tensor& weight, const QuantizedLinear& quantized,
                           at::TensorList grams);

/// tr(D G Dᵀ) for each Gram, of a change D [rows, cols] that is given.
std::vector<double> losses(const at::Tensor& change, at::TensorList grams);

/// The same with statistics "gram", which stay as they are summed. Throws ValueError for others.
std::vector<double> losses(const at::Tensor& change, const std::vector<const Statistic*>& grams);

}  // namespace mlcalib
