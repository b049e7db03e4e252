// SPDX-License-Identifier: Apache-2.0
// Grids and solvers. Rows are independent in every algorithm here, so all loops vectorise across
// the rows of a transposed panel. Compiled without contraction: codes are decided here.
#include "vec.hpp"

namespace mlcalib::cpu::MLCALIB_ISA {
namespace {

static_assert(kRowTile % kLanes == 0);
constexpr int64_t kVectors = kRowTile / kLanes;

template <class T>
inline T min_of(T a, T b) {
  return a < b ? a : b;
}

template <class T>
inline T max_of(T a, T b) {
  return a > b ? a : b;
}

// Adding 1.5 · 2^23 leaves no fraction bits: rounds to nearest even, for |x| < 2^22, on every
// instruction set alike.
template <class T>
inline T round_nearest(T x) {
  const float kMagic = 12582912.0F;
  return (x + kMagic) - kMagic;
}

// code − zero of the nearest level. Clamped before it is rounded: the bounds are integers.
template <class T>
inline T nearest_level(T weight, T scale, T zero, T max_code) {
  return round_nearest(min_of(max_of(weight / scale, -zero), max_code - zero));
}

constexpr float kSmallestScale = 1.17549435e-38F;  // FLT_MIN: a group of zeros divides to zeros
constexpr float kShrinkStep = 0.03F;

void fit_group(const GroupPanel& group, const GridShape& shape, float* scale, float* zero) {
  const Vec max_code = broadcast(shape.max_code);
  for (int64_t r = 0; r < group.rows; r += kLanes) {
    Vec low{}, high{};  // the range always holds zero
    for (int64_t c = 0; c < group.columns; ++c) {
      const Vec w = load(group.weight + c * group.stride + r);
      low = min_of(low, w);
      high = max_of(high, w);
    }
    if (shape.symmetric) {
      high = max_of(high, -low);
      low = -high;
    }
    Vec best{}, best_scale{}, best_zero{};
    for (int candidate = 0; candidate < shape.candidates; ++candidate) {
      const float shrink = 1.0F - kShrinkStep * static_cast<float>(candidate);
      const Vec s = max_of((high - low) * shrink / max_code, broadcast(kSmallestScale));
      const Vec z = shape.symmetric
                        ? broadcast((shape.max_code + 1.0F) / 2)
                        : round_nearest(min_of(max_of(-(low * shrink) / s, Vec{}), max_code));
      Vec loss{};
      if (shape.candidates > 1) {
        for (int64_t c = 0; c < group.columns; ++c) {
          const Vec w = load(group.weight + c * group.stride + r);
          const Vec d = w - s * nearest_level(w, s, z, max_code);
          loss += group.importance ? d * d * group.importance[c] : d * d;
        }
      }
      const Mask better = candidate == 0 ? ~Mask{} : loss < best;
      best = better ? loss : best;
      best_scale = better ? s : best_scale;
      best_zero = better ? z : best_zero;
    }
    store(scale + r, best_scale);
    store(zero + r, best_zero);
  }
}

void quantize_run(const float* weight, int64_t n, float scale, float zero, float max_code,
                  uint8_t* codes) {
  for (int64_t i = 0; i < n; ++i) {
    codes[i] = static_cast<uint8_t>(nearest_level(weight[i], scale, zero, max_code) + zero);
  }
}

void dequantize_run(const uint8_t* codes, int64_t n, float scale, float zero, float* weight) {
  for (int64_t i = 0; i < n; ++i) weight[i] = scale * (static_cast<float>(codes[i]) - zero);
}

// Left-looking inside the block too: column k gathers M_jk · D_j of the columns before it, with the
// row tile's sum in registers and D in the first-level cache.
void gptq_block(const GptqBlock& b) {
  const Vec max_code = broadcast(b.max_code);
  for (int64_t r = 0; r < b.rows; r += kRowTile) {
    Vec energy[kVectors] = {}, square[kVectors] = {};
    for (int64_t k = 0; k < b.columns; ++k) {
      const int64_t at = k * b.stride + r;
      const float* factor = b.factor + k * b.columns;
      Vec target[kVectors];
      for (int64_t v = 0; v < kVectors; ++v) target[v] = load(b.target + at + v * kLanes);
      for (int64_t j = 0; j < k; ++j) {
        const float* error = b.error + j * b.stride + r;
        for (int64_t v = 0; v < kVectors; ++v) target[v] += load(error + v * kLanes) * factor[j];
      }
      for (int64_t v = 0; v < kVectors; ++v) {
        const int64_t lane = v * kLanes;
        const Vec s = load(b.scale[k] + r + lane);
        const Vec z = load(b.zero[k] + r + lane);
        const Vec level = nearest_level(target[v], s, z, max_code);
        const Vec quantized = s * level;
        const Vec error = load(b.weight + at + lane) - quantized;
        const Vec residual = (target[v] - quantized) * b.diagonal[k];
        energy[v] += residual * residual;
        square[v] += error * error;
        store(b.error + at + lane, error);
        const Bytes codes = __builtin_convertvector(level + z, Bytes);
        __builtin_memcpy(b.codes + at + lane, &codes, sizeof codes);
      }
    }
    for (int64_t i = 0; i < kRowTile; ++i) {
      b.energy[r + i] += static_cast<double>(energy[i / kLanes][i % kLanes]);
      b.square[r + i] += static_cast<double>(square[i / kLanes][i % kLanes]);
    }
  }
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
extern const KernelTable table;
const KernelTable table = {MLCALIB_TEXT(MLCALIB_ISA),
                           &fit_group,
                           &quantize_run,
                           &dequantize_run,
                           &gptq_block,
                           &dot,
                           &gram_kernels};

}  // namespace mlcalib::cpu::MLCALIB_ISA
