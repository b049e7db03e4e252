// SPDX-License-Identifier: Apache-2.0
// Functions keep no state and may be called from several threads, also with the same arguments.
#pragma once

#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>

#include <mlcalib/export.hpp>
#include <mlcalib/numbers.hpp>
#include <optional>
#include <string_view>

namespace MLCALIB_API mlcalib {

/// How the range of a group is chosen.
enum class Range {
  kMinMax,     ///< its extremes
  kMse,        ///< the shrunk range of least squared error
  kGram,       ///< the same, each channel's error weighted by the diagonal of the Gram
  kGramBlock,  ///< the shrunk range of least d G dᵀ, with the group's own block of the Gram
};

std::string_view to_string(Range range);
Range parse_range(std::string_view name);
/// Whether the Gram of the weight's input has a say in the range.
bool needs_gram(Range range);

std::string_view to_string(Numbers numbers);
Numbers parse_numbers(std::string_view name);

/// group_size of a grid whose groups are whole rows.
inline constexpr int64_t kWholeRow = -1;

/// The values a weight may take: 2^bits levels per group of consecutive input channels.
struct GridSpec {
  int64_t bits = 4;          ///< 2 … 8 for integers; 4 or 8 as the other numbers have it
  int64_t group_size = 128;  ///< input channels that share a scale, or kWholeRow
  bool symmetric = false;    ///< zero point fixed at mid-range; true for all but integers
  Range range = Range::kMinMax;
  /// Scales are rounded to it before codes are chosen: float32, bfloat16 or float16; for floats of
  /// few bits also Float8_e8m0fnu (powers of two) or Float8_e4m3fn (see global_scale). For
  /// NormalFloat also Byte: codes of nested_numbers() (see global_scale).
  at::ScalarType scale_dtype = at::kFloat;
  Numbers numbers = Numbers::kInteger;
  /// Scales are Float8_e4m3fn numbers divided by this float32; 0: what lets the largest group of
  /// the weights that are fitted together have the largest of these numbers. Of codes: what is
  /// taken away from scales before they are quantized; 0: their mean over the weight.
  double global_scale = 0;
  /// Of integers: input channels, whole groups, that share one number of scale_dtype. The scales of
  /// their groups are 1 … 2^scale_bits − 1 of it, or where symmetric, signed, −2^(scale_bits − 1) …
  /// 2^(scale_bits − 1) − 1 of it but 0: the sign decides which end has the level more. The others
  /// have no zero points, but minima: 0 … 2^scale_bits − 1 of a second number. 0: none.
  int64_t super_block = 0;
  int64_t scale_bits = 0;  ///< 2 … 8 with a super_block, else 0
  /// One scale for all weights that are fitted together, repeated for each row; symmetric, and
  /// group_size is kWholeRow.
  bool per_tensor = false;

  /// Throws ValueError for fields outside their domain.
  void check() const;
  /// Number of groups in a row of `channels`; the last may be shorter.
  int64_t groups(int64_t channels) const;
  int64_t max_code() const { return (int64_t{1} << bits) - 1; }
  /// Whether the zeros of a grid are minima.
  bool has_minima() const { return super_block != 0 && !symmetric; }
  /// Whether scales are quantized themselves, those of all rows together.
  bool has_nested_scales() const { return scale_dtype == at::kByte; }
  /// Whether scales may be negative.
  bool has_signed_scales() const { return super_block != 0 && symmetric; }
};

/// scale float32 and zero uint8, both [rows, groups]; weight ≈ scale · number of the code, which is
/// code − zero for integers; the others have zeros of 0. Of a spec with minima zero is float32, and
/// weight ≈ scale · code − zero.
struct Grid {
  at::Tensor scale;
  at::Tensor zero;
  GridSpec spec;
};

/// The spec with the global_scale that weights ask for together; itself where it has one or needs
/// none.
GridSpec with_global_scale(GridSpec spec, at::TensorList weights);

/// The grid of weight [rows, cols] (float32, bfloat16 or float16). `gram` [cols, cols] is needed
/// for Range::kGram and Range::kGramBlock. The spec of the result has the global_scale. Throws
/// ValueError for NaN or Inf in weight, and for a scale that scale_dtype cannot hold.
Grid fit_grid(const at::Tensor& weight, const GridSpec& spec,
              const std::optional<at::Tensor>& gram = std::nullopt);

/// The numbers that scales are quantized to, float32 [256] by code: the dynamic map of bitsandbytes
/// (arXiv 1511.04561), by which blocks of 256 scales, less an offset, are multiples of one float32.
at::Tensor nested_numbers();

/// Nearest codes, uint8 [rows, cols].
at::Tensor quantize(const at::Tensor& weight, const Grid& grid);

/// float32 [rows, cols].
at::Tensor dequantize(const at::Tensor& codes, const Grid& grid);

}  // namespace mlcalib
