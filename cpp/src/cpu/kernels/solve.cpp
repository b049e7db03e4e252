// SPDX-License-Identifier: Apache-2.0
// Rounding and the GPTQ solve. Rows are independent in every algorithm here, so all loops vectorise
// across the rows of a transposed panel. Compiled without contraction: codes are decided here.
#include "fit.hpp"

namespace mlcalib::cpu::MLCALIB_ISA {
namespace {

void quantize_run(const float* weight, int64_t n, float scale, float zero, const GridShape& shape,
                  uint8_t* codes) {
  const Level<float> level{scale, zero};
  with_numbers<float>(shape, [&](auto numbers) {
    for (int64_t i = 0; i < n; ++i) {
      codes[i] =
          static_cast<uint8_t>(code_of(nearest_unit(weight[i], level, numbers), level, numbers));
    }
  });
}

void dequantize_run(const uint8_t* codes, int64_t n, float scale, float zero,
                    const GridShape& shape, float* weight) {
  const Level<float> level{scale, zero};
  with_numbers<float>(shape, [&](auto numbers) {
    for (int64_t i = 0; i < n; ++i) {
      weight[i] = value_of(static_cast<float>(codes[i]), level, numbers);
    }
  });
}

// Left-looking inside the block too: column k gathers R_kj / R_kk · D_j of the columns visited
// before it, with the row tile's sum in registers and D in the first-level cache.
template <class NumberSet>
void gptq_block(const GptqBlock& b, NumberSet numbers) {
  Vec energy[kVectors] = {}, square[kVectors] = {};
  for (int64_t k = b.columns - 1; k >= 0; --k) {
    const float* factor = b.factor + k * b.columns;
    Vec target[kVectors];
    for (int64_t v = 0; v < kVectors; ++v) target[v] = load(b.target + k * kRowTile + v * kLanes);
    for (int64_t j = b.columns - 1; j > k; --j) {
      const float* error = b.error + j * kRowTile;
      for (int64_t v = 0; v < kVectors; ++v) {
        target[v] = fed_back(target[v], load(error + v * kLanes), factor[j]);
      }
    }
    const float* weight = b.weight + b.column[k] * kRowTile;
    const float* scale = b.scale + b.group[k] * kRowTile;
    const float* zero = b.zero + b.group[k] * kRowTile;
    uint8_t* codes = b.codes + b.column[k] * kRowTile;
    for (int64_t v = 0; v < kVectors; ++v) {
      const int64_t lane = v * kLanes;
      const Level<Vec> level{load(scale + lane), load(zero + lane)};
      const Decision<Vec> made =
          decide(load(weight + lane), target[v], level, b.diagonal[k], numbers);
      energy[v] += made.residual * made.residual;
      square[v] += made.error * made.error;
      store(b.error + k * kRowTile + lane, made.error);
      // By way of integers: GCC 12 would convert one by one.
      const Mask code = __builtin_convertvector(code_of(made.unit, level, numbers), Mask);
      const Bytes bytes = __builtin_convertvector(code, Bytes);
      __builtin_memcpy(codes + lane, &bytes, sizeof bytes);
    }
  }
  for (int64_t i = 0; i < kRowTile; ++i) {
    b.energy[i] += static_cast<double>(energy[i / kLanes][i % kLanes]);
    b.square[i] += static_cast<double>(square[i / kLanes][i % kLanes]);
  }
}

void gptq_block(const GptqBlock& b) {
  with_numbers<Vec>(b.shape, [&](auto numbers) { gptq_block(b, numbers); });
}

double dot(const float* a, const float* b, int64_t n) {
  // Eight sums, added in a fixed order: the same bits on every instruction set.
  double sum[8] = {};
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    for (int64_t j = 0; j < 8; ++j) {
      sum[j] += static_cast<double>(a[i + j]) * static_cast<double>(b[i + j]);
    }
  }
  for (int64_t j = 0; i < n; ++i, ++j)
    sum[j] += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  return ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
}

}  // namespace

#define MLCALIB_TEXT_(x) #x
#define MLCALIB_TEXT(x) MLCALIB_TEXT_(x)

extern const GramKernels gram_kernels;
extern const FactorKernels factor_kernels;
extern const DescentKernels descent_kernels;
extern const ChannelKernels channel_kernels;
extern const AwqKernels awq_kernels;
extern const PackedRowKernels packed_row_kernels;
extern const PackedBlockKernels packed_block_kernels;
extern const KernelTable table;
const KernelTable table = {MLCALIB_TEXT(MLCALIB_ISA),
                           &fit_group,
                           &quantize_run,
                           &dequantize_run,
                           &gptq_block,
                           &dot,
                           &gram_kernels,
                           &factor_kernels,
                           &descent_kernels,
                           &channel_kernels,
                           &awq_kernels,
                           &packed_row_kernels,
                           &packed_block_kernels};

}  // namespace mlcalib::cpu::MLCALIB_ISA
