// SPDX-License-Identifier: Apache-2.0
// Functions keep no state and may be called from several threads, also with the same arguments.
#pragma once

#include <mlcalib/export.hpp>
#include <mlcalib/linear.hpp>
#include <string_view>
#include <vector>

namespace MLCALIB_API mlcalib {

/// The order in which GPTQ visits input channels.
enum class Order {
  kActivation,  ///< falling diagonal of the Gram, groups as in the original weight (static groups)
  kNatural,     ///< first to last
};

std::string_view to_string(Order order);
Order parse_order(std::string_view name);

struct GptqOptions {
  GridSpec grid{.range = Range::kGram};
  double damp = 0.01;   ///< added to the diagonal, as a fraction of its mean
  int64_t block = 128;  ///< columns solved between two matrix products
  Order order = Order::kActivation;
  int64_t refit = 0;        ///< rounds: scales refitted to the codes, and all solved again on these
  int64_t sweeps = 0;       ///< of coordinate descent on the scales and codes that are found
  double output_damp = 1;   ///< as damp, for the diagonal of output Grams
  bool static_grid = true;  ///< false (natural order only): fit a group's grid when it is reached

  /// Throws ValueError for fields outside their domain.
  void check() const;
};

/// GPTQ (Frantar et al., arXiv 2210.17323) of weight [rows, cols] against gram [cols, cols] in its
/// feedback form: with H = G + λI = R Rᵀ, R upper triangular, M = R · diag(R)⁻¹,
///   ŵ_k = Q(w_k + Σ_{j<k} (w_j − ŵ_j) M_jk).
/// One Cholesky factorisation; no inverse. Where H is not positive definite the damping rises
/// tenfold at a time and is reported; past a limit LinAlgError is thrown.
/// Scratch, in float32, on the CPU: one matrix of the Gram's size (`gram_block`: two) and three of
/// the weights' (four where there are several linears). Sweeps take one more of the Gram's size.
QuantizedLinear gptq(const at::Tensor& weight, const at::Tensor& gram,
                     const GptqOptions& options = {});

/// Linears that read the same input: one factorisation, one solve of all their rows.
std::vector<QuantizedLinear> gptq(at::TensorList weights, const at::Tensor& gram,
                                  const GptqOptions& options = {});

/// Two-sided: makes tr(O D G Dᵀ) small, where O = Σ g gᵀ [rows, rows] is a Gram of the gradients of
/// each linear's outputs (arXiv 2505.22988). Rows in falling order of O's diagonal are solved in
/// blocks of 48: as above within a block, from weights that make up for the errors of the blocks
/// before. Grids are fitted to the weights as they were. There is no `loss` in the results, and
/// `refit` and `static_grid` must be as by default. Scratch on the CPU: besides, two matrices of
/// one linear's weights, half of the Gram's size and two of its output Gram's.
std::vector<QuantizedLinear> gptq(at::TensorList weights, const at::Tensor& gram,
                                  at::TensorList outputs, const GptqOptions& options = {});

}  // namespace mlcalib
