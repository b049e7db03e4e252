// SPDX-License-Identifier: Apache-2.0
// The contract between the CUDA backend and its kernels: plain structs of device pointers, launched
// on a stream. Nothing from ATen may be included here, so that nvcc compiles the kernels without
// torch. Matrices are row-major; `stride` elements lie between two rows. Errors of a launch are
// left for the caller to fetch.
#pragma once

#include "arithmetic.hpp"

typedef struct CUstream_st* cudaStream_t;  // as the CUDA runtime declares it

namespace mlcalib::cuda {

/// Ranges of groups of `width` consecutive columns, the last may be narrower.
struct FitGrid {
  const float* weight;      ///< [rows][stride]
  const float* importance;  ///< [columns], the weight of each column's squared error; may be null
  const float* gram;        ///< [columns][gram_stride]; its diagonal blocks weigh the products of a
                            ///< group's errors; null: importance
  int64_t gram_stride;
  float* scratch;  ///< fit_scratch() floats
  int64_t rows;
  int64_t columns;
  int64_t stride;
  int64_t width;
  GridShape shape;
  float* scale;  ///< [rows][groups], written
  float* zero;
};
void fit_grid(const FitGrid& fit, cudaStream_t stream);
/// Floats of scratch that a fit by blocks of the Gram needs; 0 where shared memory holds it.
int64_t fit_scratch(int64_t rows, int64_t columns, int64_t width);

/// Nearest codes, or the values of codes, of a contiguous matrix.
struct Levels {
  const float* scale;  ///< [rows][groups]
  const float* zero;
  int64_t rows;
  int64_t columns;
  int64_t width;
  GridShape shape;
};
void quantize(const float* weight, const Levels& levels, uint8_t* codes, cudaStream_t stream);
void dequantize(const uint8_t* codes, const Levels& levels, float* weight, cudaStream_t stream);

/// One block of columns of the GPTQ solve: everything starts at the block's first column.
struct GptqBlock {
  static constexpr int64_t kColumns = 128;  ///< at most

  const float* weight;      ///< [rows][stride], original weights
  const float* target;      ///< [rows][target_stride], plus the feedback of all earlier blocks
  const float* factor;      ///< [columns][columns]: M, unit upper triangular
  const float* diagonal;    ///< [columns]: R_kk
  const float* scale;       ///< [rows][groups]
  const float* zero;        ///< [rows][groups]
  const int64_t* group_of;  ///< [columns]
  float* error;             ///< [rows][stride]: D = W − Ŵ, written
  uint8_t* codes;           ///< [rows][stride], written
  double* energy;           ///< [rows] += Σ_k (R_kk · (target_k − ŵ_k))², the damped loss
  double* square;           ///< [rows] += Σ_k D_k²
  int64_t rows;
  int64_t columns;
  int64_t stride;
  int64_t target_stride;
  int64_t groups;
  GridShape shape;
};
void gptq_block(const GptqBlock& block, cudaStream_t stream);

/// One block of columns of a coordinate descent on tr(O D H Dᵀ), D = Ŵ − W, for one tile of rows:
/// everything starts at the block's first column and row. Every code in turn becomes the best that
/// it can be alone.
struct DescentBlock {
  static constexpr int64_t kRows = 48;      ///< at most
  static constexpr int64_t kColumns = 128;  ///< at most

  const float* gram;        ///< [columns][gram_stride]: H
  const float* output;      ///< [rows][output_stride]: O
  const float* gradient;    ///< [rows][columns]: O D H, half of the loss's
  const float* scale;       ///< [rows][groups]
  const float* zero;        ///< [rows][groups]
  const int64_t* group_of;  ///< [columns]
  float* felt;              ///< [rows][stride]: O D, kept up to date
  float* error;             ///< [rows][stride]: D, kept up to date
  uint8_t* codes;           ///< [rows][stride], changed
  int32_t* changed;         ///< becomes 1 where any code does
  int64_t rows;
  int64_t columns;
  int64_t stride;
  int64_t gram_stride;
  int64_t output_stride;
  int64_t groups;
  GridShape shape;
};
void descent_block(const DescentBlock& block, cudaStream_t stream);

/// Groups whose input channels are scaled before they are rounded.
struct RoundScaled {
  const float* weight;      ///< [rows][columns]
  const float* factor;      ///< [columns]
  const float* inverse;     ///< [columns]: 1 / factor
  const float* importance;  ///< [columns], of the scaled columns; may be null
  const float* square;      ///< [columns], weights of the squared errors in sum
  int64_t rows;
  int64_t columns;
  int64_t width;
  GridShape shape;
  float* error;  ///< [rows][columns]: (w·f − Q(w·f)) / f, written
  float* sum;    ///< [rows][groups]: Σ_c square_c · error_c², written
};
void round_scaled(const RoundScaled& group, cudaStream_t stream);

enum class Element { kFloat, kBFloat16, kHalf };

/// Activations [tokens][stride], the first `channels` of each.
struct Activations {
  const void* data;
  Element element;
  int64_t tokens;
  int64_t channels;
  int64_t stride;
};
/// sum += Σ x, absolute += Σ |x|, square += Σ x²; [channels].
void moments_update(const Activations& x, double* sum, double* absolute, double* square,
                    cudaStream_t stream);
/// low = min(low, x), high = max(high, x); [channels].
void range_update(const Activations& x, float* low, float* high, cudaStream_t stream);
/// counts[c][b] += how many |x_c| / unit[c] are in bin b; [channels][kHistogramBins].
void histogram_update(const Activations& x, const float* unit, double* counts, cudaStream_t stream);
/// *found += how many values are NaN or Inf.
void count_nonfinite(const Activations& x, int64_t* found, cudaStream_t stream);

/// A packed symmetric matrix [channels][channels]: block rows of so many rows, the last of those
/// that are left, one after the other. Each is a matrix [rows][channels − first] of the columns
/// from its first row on, which a product is added to as it is. Enough rows for a product that
/// fills a GPU; what they hold below the diagonal is never read.
inline constexpr int64_t kBlockRows = 1024;

/// Where the block row starts that begins with row `first`.
MLCALIB_HD int64_t block_row(int64_t first, int64_t channels) {
  return first * channels - first * (first - kBlockRows) / 2;
}

/// Where column 0 of a row would be; from the diagonal on, its columns are there.
MLCALIB_HD int64_t packed_row(int64_t row, int64_t channels) {
  const int64_t first = row / kBlockRows * kBlockRows;
  return block_row(first, channels) + (row - first) * (channels - first) - first;
}

/// Floats of all block rows: (channels + kBlockRows) / 2 · channels where they are whole.
MLCALIB_HD int64_t packed_size(int64_t channels) {
  const int64_t first = channels / kBlockRows * kBlockRows;
  return block_row(first, channels) + (channels - first) * (channels - first);
}

/// gram [channels][channels], written, of the packed sums.
void unpack_gram(const float* sums, int64_t channels, float* gram, cudaStream_t stream);

/// ⟨D, G⟩ of one symmetric matrix with several, all packed, in float64.
struct TriangleDots {
  static constexpr int kGrams = 16;  ///< at most, in one launch

  const float* square;  ///< D
  const float* grams[kGrams];
  int count;
  int64_t channels;
  double* sums;  ///< [count][triangle_dot_sums(channels)], written: still to be added
};
void triangle_dots(const TriangleDots& dots, cudaStream_t stream);
int64_t triangle_dot_sums(int64_t channels);

/// Σ a·b in float64, as partial sums [dot_sums(n)] that are still to be added.
void dot(const float* a, const float* b, int64_t n, double* sums, cudaStream_t stream);
int64_t dot_sums(int64_t n);

void pack(const uint8_t* codes, int64_t rows, int64_t columns, int64_t bits, uint32_t* packed,
          cudaStream_t stream);
void unpack(const uint32_t* packed, int64_t rows, int64_t columns, int64_t bits, uint8_t* codes,
            cudaStream_t stream);

}  // namespace mlcalib::cuda
