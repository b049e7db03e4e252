// SPDX-License-Identifier: Apache-2.0
// Functions keep no state and may be called from several threads, also with the same arguments.
#pragma once

#include <mlcalib/export.hpp>
#include <mlcalib/grid.hpp>
#include <optional>
#include <vector>

namespace MLCALIB_API mlcalib {

/// Linears that read the same input: weights [rows, cols] each, and the input's gram [cols, cols].
struct LinearGroup {
  std::vector<at::Tensor> weights;
  at::Tensor gram;
};

struct AwqOptions {
  GridSpec grid;        ///< of the scaled weights; its range is chosen anew for every candidate
  int64_t points = 20;  ///< exponents 0, 1/points, … (points − 1)/points
  int64_t exact = 3;    ///< best candidates by the sketch that are scored again with the whole Gram
  int64_t sketch = 64;  ///< rows of the sketch; a smaller Gram is not sketched

  /// Throws ValueError for fields outside their domain.
  void check() const;
};

struct AwqScale {
  at::Tensor scale;     ///< float32 [cols]: weights are multiplied by it, inputs divided
  double exponent = 0;  ///< of the mean |x|; 0 where no scale is best
  double loss = 0;      ///< Σ tr(D G Dᵀ), D = W − Q(W·s)/s
  double unscaled = 0;  ///< the same without a scale
  at::Tensor scores;    ///< float64 [points] on the CPU, the losses as the sketch estimates them
};

/// Candidate scales, float32 [points, cols] (AWQ, Lin et al., arXiv 2306.00978, section 3.2):
/// powers of the mean |x| [cols], over √(max · min). Channels of mean zero keep the scale 1. With
/// `source_of` int64 [cols] channels of the same source share a scale, made from their mean.
at::Tensor awq_candidates(const at::Tensor& mean, int64_t points,
                          const std::optional<at::Tensor>& source_of = std::nullopt);

/// The best of the candidates for linears whose inputs are scaled by one source. Their losses come
/// from Grams alone: a random sketch of each Gram scores all candidates, the best few and the one
/// without a scale are scored exactly.
AwqScale awq_scale(const std::vector<LinearGroup>& groups, const at::Tensor& mean,
                   const AwqOptions& options = {},
                   const std::optional<at::Tensor>& source_of = std::nullopt);

/// AWQ's clipping: the shrunk range of each group that has the least error of the outputs, by the
/// group's block of the Gram: the grid with Range::kGramBlock, whatever spec.range is.
Grid awq_clip(const at::Tensor& weight, const at::Tensor& gram, const GridSpec& spec);

}  // namespace mlcalib
