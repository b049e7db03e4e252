// SPDX-License-Identifier: Apache-2.0
// The whole contract of a backend: a device that installs these runs everything. Arguments are
// checked by the fronts, which also see to it that no product is made in TF32; weights and
// activations arrive contiguous along their last dimension.
#pragma once

#include <ATen/core/Tensor.h>

#include <mlcalib/grid.hpp>
#include <tuple>
#include <variant>
#include <vector>

#include "device_stub.hpp"

namespace mlcalib {

/// How many tokens of x [tokens, channels] one call of the *_update stubs should get, so that all
/// statistics see them while they are in the cache; 1 or more.
inline constinit DeviceStub<int64_t(const at::Tensor& x)> piece_tokens_stub{"piece_tokens"};

/// found int64 [1] += how many values of x [tokens, channels] are NaN or Inf, without waiting for
/// the device; the number is read when a statistic is. Where a device has none, as the CPU, each
/// update looks at once.
inline constinit DeviceStub<void(const at::Tensor& found, const at::Tensor& x)>
    count_nonfinite_stub{"count_nonfinite"};

/// The sums of a Gram of no tokens, float32 zeros: one triangle, in the device's own layout, which
/// depends on the channels alone, so that sums add up; its padding stays zero.
inline constinit DeviceStub<at::Tensor(int64_t channels, at::Device device)> gram_sums_stub{
    "gram_sums"};

/// Adds xᵀx of x [tokens, channels] to sums.
inline constinit DeviceStub<void(const at::Tensor& sums, const at::Tensor& x)> gram_update_stub{
    "gram_update"};

/// The sums of a Gram [channels, channels].
inline constinit DeviceStub<at::Tensor(const at::Tensor& gram)> gram_pack_stub{"gram_pack"};

/// The Gram [channels, channels], new memory, of its sums.
inline constinit DeviceStub<at::Tensor(const at::Tensor& sums, int64_t channels)> gram_unpack_stub{
    "gram_unpack"};

/// tr(D G Dᵀ) of change float32 [rows, channels] with each Gram, given by its sums; ⟨DᵀD, G⟩ is
/// summed in float64.
inline constinit DeviceStub<std::vector<double>(const at::Tensor& change,
                                                const std::vector<at::Tensor>& grams)>
    gram_losses_stub{"gram_losses"};

/// deviation float32 [channels, channels] += (reference − x)ᵀ x over the tokens of both [tokens,
/// channels].
inline constinit DeviceStub<void(const at::Tensor& deviation, const at::Tensor& x,
                                 const at::Tensor& reference)>
    deviation_update_stub{"deviation_update"};

/// sum += Σ x, absolute += Σ |x|, square += Σ x² over the tokens of x [tokens, channels]; float64
/// [channels].
inline constinit DeviceStub<void(const at::Tensor& sum, const at::Tensor& absolute,
                                 const at::Tensor& square, const at::Tensor& x)>
    moments_update_stub{"moments_update"};

/// low = min(low, x), high = max(high, x) over the tokens of x; float32 [channels].
inline constinit DeviceStub<void(const at::Tensor& low, const at::Tensor& high,
                                 const at::Tensor& x)>
    range_update_stub{"range_update"};

/// counts float64 [channels, kHistogramBins] += 1 in the bin of |x| / unit of each token of x; unit
/// float32 [channels].
inline constinit DeviceStub<void(const at::Tensor& counts, const at::Tensor& unit,
                                 const at::Tensor& x)>
    histogram_update_stub{"histogram_update"};

/// (scale, zero), float32 [rows, groups], unrounded, of weight float32 [rows, cols]; importance
/// float32 [cols] weights squared errors, gram [cols, cols] the errors of a group and their
/// products instead. Both may be undefined.
inline constinit DeviceStub<std::tuple<at::Tensor, at::Tensor>(
    const at::Tensor& weight, const at::Tensor& importance, const at::Tensor& gram,
    const GridSpec& spec)>
    fit_grid_stub{"fit_grid"};

/// codes uint8 [rows, cols] of weight float32 [rows, cols].
inline constinit DeviceStub<at::Tensor(const at::Tensor& weight, const Grid& grid)> quantize_stub{
    "quantize"};

/// float32 [rows, cols] of codes uint8 [rows, cols].
inline constinit DeviceStub<at::Tensor(const at::Tensor& codes, const Grid& grid)> dequantize_stub{
    "dequantize"};

/// M = R · diag(R)⁻¹ and the diagonal of R, where H = R Rᵀ, R is upper triangular and columns stand
/// in the order visited.
struct Factor {
  at::Tensor matrix;    ///< M, in the device's own layout: only its gptq_stub reads it
  at::Tensor diagonal;  ///< R_kk, float32 [cols]
};

/// Of H = gram + added · I; visits int64 [cols], on the device, are the columns in the order
/// visited. Undefined tensors where H is not positive definite.
inline constinit DeviceStub<Factor(const at::Tensor& gram, const at::Tensor& visits, double added)>
    factorize_stub{"factorize"};

/// Grids that are fitted to the weight's own columns, before the solve.
struct FittedBefore {};
/// Grids that are fitted to what the solve holds when it reaches a group; in natural order only.
struct FittedAsReached {};
/// What a solve stands on: a grid that is given is never fitted again.
using GptqGrids = std::variant<Grid, FittedBefore, FittedAsReached>;

/// Rows that are solved together where the changes of earlier ones move later ones.
inline constexpr int64_t kRowBlock = 48;

/// What the GPTQ solve needs; columns stand in their own order.
struct GptqProblem {
  at::Tensor weight;              ///< float32 [rows, cols]
  at::Tensor visits;              ///< int64 [cols]: columns in the order visited
  std::vector<int64_t> group_of;  ///< [cols], in the order visited
  Factor factor;
  at::Tensor importance;  ///< diag(H), float32 [cols], weighs squared errors (Range::kGram)
  at::Tensor gram;        ///< H, float32 [cols, cols], weighs errors (Range::kGramBlock)
  GridSpec spec;
  GptqGrids grids;
  int64_t block = 0;  ///< columns solved between two matrix products
  /// float32 [rows, rows], see row_feed: later rows make up for the changes of earlier ones, and
  /// grids are FittedBefore or given. Undefined where rows are independent.
  at::Tensor row_feed = {};
};

struct GptqSolution {
  at::Tensor codes;  ///< uint8 [rows, cols]
  // D is the change of the weights; with a row_feed, that of what they were moved to.
  at::Tensor energy;  ///< float64 [rows], the diagonal of D H Dᵀ
  at::Tensor square;  ///< float64 [rows], ‖D‖² of each row
  Grid grid;
};
inline constinit DeviceStub<GptqSolution(const GptqProblem& problem)> gptq_stub{"gptq"};

/// What coordinate descent needs; see descend.
struct DescentProblem {
  at::Tensor hessian;      ///< H, float32 [cols, cols]
  at::Tensor output;       ///< O, float32 [rows, rows]; undefined where it is the identity
  float output_added = 0;  ///< to the diagonal of O
  at::Tensor error;        ///< Ŵ − W, float32 [rows, cols]; the solver may write over it
  at::Tensor codes;        ///< uint8 [rows, cols]
  Grid grid;
  int64_t sweeps = 0;
};
/// What it comes to: codes uint8 [rows, cols], and their grid.
struct Descended {
  at::Tensor codes;
  Grid grid;
};
inline constinit DeviceStub<Descended(const DescentProblem& problem)> descend_stub{"descend"};

/// What AWQ's scale search needs of linears that read one input.
struct AwqProblem {
  at::Tensor weight;      ///< float32 [rows, cols]
  at::Tensor candidates;  ///< float32 [points, cols], scales of the input channels
  at::Tensor importance;  ///< diag(G), float32 [cols], for the range search; may be undefined
  at::Tensor sketch;      ///< S, float32 [k, cols], SᵀS ≈ G
  at::Tensor missing;     ///< diag(G − SᵀS), float32 [cols]
  GridSpec spec;
};

/// float64 [points], on the CPU: ‖S Dᵀ‖² + Σ_c missing_c ‖D_c‖² of each candidate s, D = W −
/// Q(W·s)/s.
inline constinit DeviceStub<at::Tensor(const AwqProblem& problem)> awq_scores_stub{"awq_scores"};

/// ⟨a, b⟩ of two float32 matrices, summed in float64.
inline constinit DeviceStub<double(const at::Tensor& a, const at::Tensor& b)> dot_stub{"dot"};

inline constinit DeviceStub<at::Tensor(const at::Tensor& codes, int64_t bits)> pack_stub{"pack"};
inline constinit DeviceStub<at::Tensor(const at::Tensor& packed, int64_t bits, int64_t columns)>
    unpack_stub{"unpack"};

/// uint8 [tiles, bytes of a tile]: codes uint8 [rows, cols] and their grid in the device's own
/// layout for products.
inline constinit DeviceStub<at::Tensor(const at::Tensor& codes, const Grid& grid)> pack_linear_stub{
    "pack_linear"};

/// The inverse; the scales of the grid are float32.
inline constinit DeviceStub<std::tuple<at::Tensor, Grid>(const at::Tensor& packed, int64_t rows,
                                                         int64_t columns, const GridSpec& spec)>
    unpack_linear_stub{"unpack_linear"};

/// x Wᵀ + bias, of x's dtype [tokens, rows], of x [tokens, cols]; bias may be undefined.
inline constinit DeviceStub<at::Tensor(const at::Tensor& x, const at::Tensor& packed, int64_t rows,
                                       const GridSpec& spec, const at::Tensor& bias)>
    packed_linear_stub{"packed_linear"};

}  // namespace mlcalib
