// SPDX-License-Identifier: Apache-2.0
// The contract between the CPU backend and its instruction sets: plain structs and function
// pointers. Nothing from std or ATen may be included here (see cpp/CMakeLists.txt).
#pragma once

#include <cstdint>

#include "../../grid_shape.hpp"

namespace mlcalib::cpu {

/// Rows of a tile. Panels are transposed, [tile][column][kRowTile], and padded, so that loops
/// vectorise across rows and have no tail.
inline constexpr int64_t kRowTile = 48;

/// The columns of one group, for one row tile.
struct GroupPanel {
  const float* weight;      ///< [columns][kRowTile]
  const float* importance;  ///< [columns], the weight of each column's squared error; may be null
  const float* gram;        ///< [columns][gram_stride], weighs products of errors; null: importance
  int64_t gram_stride;
  float* scratch;  ///< [columns][kRowTile] where gram is given
  int64_t columns;
};

/// A group whose input channels are scaled before they are rounded, for one row tile.
struct ScaledGroup {
  const float* weight;      ///< [columns][kRowTile]
  const float* factor;      ///< [columns]
  const float* inverse;     ///< [columns]: 1 / factor
  const float* importance;  ///< [columns], of the scaled columns; may be null
  const float* square;      ///< [columns], weights of the squared errors in sum
  float* scaled;            ///< scratch, [columns][kRowTile]
  float* error;             ///< error[c * error_stride + r], written
  float* sum;               ///< [kRowTile] += Σ_c square[c] · error_c²
  int64_t columns;
  int64_t error_stride;
};

/// One block of columns of the GPTQ solve, for one row tile. Columns stand in the reverse of the
/// order in which they are visited: the last is the first.
struct GptqBlock {
  const float* weight;    ///< original weights, [cols][kRowTile]
  const int64_t* column;  ///< [columns]: of weight and codes
  const int64_t* group;   ///< [columns]: of scale and zero
  const float* target;    ///< [columns][kRowTile]: weights plus the feedback of earlier blocks
  const float* factor;    ///< [columns][columns]: row k holds R_kj / R_kk, j > k
  const float* diagonal;  ///< [columns]: R_kk
  const float* scale;     ///< [groups][kRowTile]
  const float* zero;      ///< [groups][kRowTile]
  float* error;           ///< [columns][kRowTile]: D = W − Ŵ, written
  uint8_t* codes;         ///< [cols][kRowTile], written
  double* energy;         ///< [kRowTile] += Σ_k (R_kk · (target_k − ŵ_k))², the damped loss
  double* square;         ///< [kRowTile] += Σ_k D_k²
  int64_t columns;
  GridShape shape;
};

/// Columns of a coordinate descent on tr(O D H Dᵀ), D = Ŵ − W, for one row tile and columns in
/// their own order.
struct DescentBlock {
  const float* gram;      ///< [columns][gram_stride]: H from the block's first column on
  const float* output;    ///< [kRowTile][kRowTile]: O between the rows of the tile
  const float* diagonal;  ///< [kRowTile]: O's; positive
  const int64_t* group;   ///< [columns]: of scale and zero
  const float* scale;     ///< [groups][kRowTile]
  const float* zero;      ///< [groups][kRowTile]
  float* gradient;        ///< [columns][kRowTile]: O D H, half of the loss's; scratch
  float* felt;            ///< [columns][kRowTile]: O D, kept up to date
  float* change;          ///< [columns][kRowTile]: of D, written
  uint8_t* codes;         ///< [columns][kRowTile], changed
  int64_t gram_stride;
  int64_t columns;
  GridShape shape;
};

enum class Element { kFloat, kBFloat16, kHalf };

/// Activations [tokens, channels]; `stride` elements from one token to the next.
struct Activations {
  const void* data;
  Element element;
  int64_t tokens;
  int64_t channels;
  int64_t stride;
};

/// Channels of a tile of the Gram while it is summed; a multiple of every kernel's rows and
/// columns.
inline constexpr int64_t kGramTile = 96;

/// Tiles of the upper triangle: those of a column lie together, and a tile is
/// [kGramTile][kGramTile].
static inline int64_t gram_tile(int64_t row, int64_t column) {
  return (column * (column + 1) / 2 + row) * kGramTile * kGramTile;
}

/// Where the sum of two channels stands; the row's tile is not after the column's.
static inline int64_t gram_index(int64_t row, int64_t column) {
  return gram_tile(row / kGramTile, column / kGramTile) + row % kGramTile * kGramTile +
         column % kGramTile;
}

/// The Gram's sums, of `rows` × `columns` at a time, over packed activations. How tokens are packed
/// is the kernel's own: `tiles` reads what `pack` wrote.
struct GramKernels {
  int64_t rows;
  int64_t columns;
  int64_t strip;  ///< channels that are packed together; divides columns

  /// Tokens to pack at a time, for speed, and so that long runs do not drift: their sums are added
  /// to the Gram.
  int64_t (*tokens)(Element element);

  /// Four-byte elements a channel that the packed tokens take.
  int64_t (*steps)(Element element, int64_t tokens);

  /// Packs strips [first, last), of `strip` · `steps` elements each, channels beyond the last as
  /// zeros. `packed` is aligned to 64 bytes.
  void (*pack)(const Activations& x, int64_t first, int64_t last, void* packed);

  /// sums[gram_index(i, j)] += x_i x_j for the `columns` channels j of `group` and the channels i
  /// of `rows` at a time, [first, last), of them all that are not after j.
  void (*tiles)(const void* packed, Element element, int64_t steps, int64_t channels, int64_t group,
                int64_t first, int64_t last, float* sums);
};

/// The Cholesky factorisation RᵀR of a matrix in tiles of kRowTile columns, [tile][row][kRowTile],
/// of which the upper triangle counts; and the products that GPTQ makes with R.
struct FactorKernels {
  int64_t rows;  ///< of one product; divides kRowTile

  /// out[m][c] += sign · Σ_t left[t * left_step + m] · right[t][c] for m < count ≤ rows and
  /// c < kRowTile; right and out are [*][kRowTile].
  void (*add_product)(const float* left, int64_t left_step, const float* right, int64_t steps,
                      float sign, int64_t count, float* out);

  /// R of a tile [kRowTile][kRowTile] on the diagonal, in place; false where it is not positive
  /// definite.
  bool (*factorize)(float* tile);

  /// tile ← R⁻ᵀ · tile, both [kRowTile][kRowTile].
  void (*solve)(const float* factor, float* tile);
};

/// Per-channel summaries of activations, for strips [first, last) of `strip` channels each.
struct ChannelKernels {
  int64_t strip;

  /// sum[c] += Σ x_c, absolute[c] += Σ |x_c|, square[c] += Σ x_c²; sums of a call run in fp32, so a
  /// call should have few tokens.
  void (*moments)(const Activations& x, int64_t first, int64_t last, double* sum, double* absolute,
                  double* square);

  /// low[c] = min(low[c], x_c), high[c] = max(high[c], x_c).
  void (*range)(const Activations& x, int64_t first, int64_t last, float* low, float* high);

  /// counts[c][b] += how many |x_c| / unit[c] are in bin b.
  void (*histogram)(const Activations& x, int64_t first, int64_t last, const float* unit,
                    double* counts);
};

struct DescentKernels {
  /// Every code of the block in turn becomes the best that it can be alone.
  void (*block)(const DescentBlock& block);
};

struct AwqKernels {
  /// error = (w·f − Q(w·f)) / f, each row's range chosen for w·f.
  void (*round_scaled)(const ScaledGroup& group, const GridShape& shape);
};

/// Rows of a tile of a packed weight.
inline constexpr int64_t kPackedRows = 32;
/// Columns of a step, the smallest piece of a packed weight: groups are padded to whole steps.
inline constexpr int64_t kPackedColumns = 8;

/// A packed weight: tiles of kPackedRows rows, the last padded, one after the other. A tile has
/// three parts, each aligned to 64 bytes: its codes, its scales [groups][kPackedRows] and, where
/// the grid is asymmetric, its zero points, uint8 [groups][kPackedRows].
///
/// Codes are [step][word][row] of 32-bit words that hold codes of one row, less `middle`, in two's
/// complement: one word of eight 4-bit codes, from the lowest bits columns 0 2 4 6 1 3 5 7 of the
/// step (the bfloat16 pairs of a register are then neighbours in x), or two words of four 8-bit
/// codes in natural order.
struct PackedWeight {
  const uint8_t* data;
  int64_t rows;
  int64_t columns;
  int64_t width;   ///< columns of a group that is not the last
  int64_t groups;  ///< the last may be shorter
  int64_t steps;   ///< of all groups
  int64_t bits;    ///< of a code as it is held: 4 or 8
  float middle;    ///< the zero point of a symmetric grid
  bool symmetric;
  Element scale;
  int64_t tile_bytes;
  int64_t scale_offset;
  int64_t zero_offset;
};

/// Where a packed product is written: row t, of `rows` values of `element`, is token t's.
struct PackedOutput {
  void* data;
  const void* bias;  ///< [rows] of `element`; may be null
  Element element;
};

/// x Wᵀ + bias for packed weights and one token: codes become floats in registers, and are used
/// there.
struct PackedRowKernels {
  /// Writes one token, padded as the groups are, and its sum over each group: steps ·
  /// kPackedColumns + groups floats.
  void (*prepare)(const Activations& x, const PackedWeight& weight, float* prepared);

  /// Rows of tiles [first, last) of the product of one prepared token.
  void (*row)(const float* prepared, const PackedWeight& weight, int64_t first, int64_t last,
              const PackedOutput& y);
};

/// The same for many tokens: a panel of codes as numbers, in the first-level cache, serves `chunk`
/// blocks of them.
struct PackedBlockKernels {
  int64_t tokens;  ///< of a block
  int64_t chunk;   ///< blocks that one call to `blocks` may take

  /// Floats that a packed block takes.
  int64_t (*floats)(const PackedWeight& weight, Element element);

  /// Packs blocks [first, last) of tokens.
  void (*pack)(const Activations& x, const PackedWeight& weight, int64_t first, int64_t last,
               float* packed);

  /// Rows of one tile of the product of blocks [first, last), at most `chunk`, of x.tokens.
  void (*blocks)(const float* packed, const Activations& x, const PackedWeight& weight,
                 int64_t tile, int64_t first, int64_t last, const PackedOutput& y);
};

/// Kernels of one instruction set. All of them decide the same codes, bit for bit, from the same
/// input.
struct KernelTable {
  const char* name;

  /// The range of each row of a group: writes scale[r] and zero[r].
  void (*fit_group)(const GroupPanel& group, const GridShape& shape, float* scale, float* zero);

  /// Nearest codes of n weights of one row that share one scale.
  void (*quantize_run)(const float* weight, int64_t n, float scale, float zero,
                       const GridShape& shape, uint8_t* codes);

  /// What n codes that share one scale stand for.
  void (*dequantize_run)(const uint8_t* codes, int64_t n, float scale, float zero,
                         const GridShape& shape, float* weight);

  /// The triangular loop of one block.
  void (*gptq_block)(const GptqBlock& block);

  /// Σ a·b in double.
  double (*dot)(const float* a, const float* b, int64_t n);

  const GramKernels* gram;
  const FactorKernels* factor;
  const DescentKernels* descent;
  const ChannelKernels* channels;
  const AwqKernels* awq;
  const PackedRowKernels* packed_row;
  const PackedBlockKernels* packed_blocks;
};

/// The table in use: the best that this processor runs, or the one that MLCALIB_ISA names.
const KernelTable& kernels();

/// Tables that this processor can run, best first.
struct KernelTables {
  const KernelTable* const* begin_;
  const KernelTable* const* end_;
  const KernelTable* const* begin() const { return begin_; }
  const KernelTable* const* end() const { return end_; }
};
KernelTables available_kernels();

}  // namespace mlcalib::cpu
