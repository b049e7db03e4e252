// SPDX-License-Identifier: Apache-2.0
// Tiles of the Cholesky factorisation, and GPTQ's products with the factor. Sums may be fused: no
// code is decided here.
#include "product.hpp"

namespace mlcalib::cpu::MLCALIB_ISA {
namespace {

static_assert(kRowTile % kProductColumns == 0 && kRowTile % kProductRows == 0);

void add_product(const float* left, int64_t left_step, const float* right, int64_t steps,
                 float sign, int64_t count, float* out) {
  for (int64_t column = 0; column < kRowTile; column += kProductColumns) {
    const float* columns[kProductStrips];
    for (int64_t s = 0; s < kProductStrips; ++s) columns[s] = right + column + s * kLanes;
    Vec sum[kProductRows][kProductStrips] = {};
    multiply<Floats>(left, left_step, columns, kRowTile, steps, sum);
    for (int64_t r = 0; r < count; ++r) {
      float* to = out + r * kRowTile + column;
      for (int64_t s = 0; s < kProductStrips; ++s) {
        store(to + s * kLanes, load(to + s * kLanes) + sum[r][s] * sign);
      }
    }
  }
}

// row −= other · factor, from the vector on that holds column `from`.
inline void subtract(float* row, const float* other, float factor, int64_t from) {
  for (int64_t v = from / kLanes * kLanes; v < kRowTile; v += kLanes) {
    store(row + v, load(row + v) - load(other + v) * factor);
  }
}

inline void divide(float* row, float divisor, int64_t from) {
  for (int64_t v = from / kLanes * kLanes; v < kRowTile; v += kLanes) {
    store(row + v, load(row + v) / divisor);
  }
}

bool factorize(float* tile) {
  for (int64_t k = 0; k < kRowTile; ++k) {
    float* row = tile + k * kRowTile;
    if (!(row[k] > 0)) return false;  // nor for NaN
    divide(row, __builtin_sqrtf(row[k]), k);
    for (int64_t i = k + 1; i < kRowTile; ++i) subtract(tile + i * kRowTile, row, row[i], i);
  }
  return true;
}

void solve(const float* factor, float* tile) {
  for (int64_t first = 0; first < kRowTile; first += kProductRows) {
    add_product(factor + first, kRowTile, tile, first, -1, kProductRows, tile + first * kRowTile);
    for (int64_t k = first; k < first + kProductRows; ++k) {
      float* row = tile + k * kRowTile;
      for (int64_t p = first; p < k; ++p) {
        subtract(row, tile + p * kRowTile, factor[p * kRowTile + k], 0);
      }
      divide(row, factor[k * kRowTile + k], 0);
    }
  }
}

}  // namespace

extern const FactorKernels factor_kernels;
const FactorKernels factor_kernels = {kProductRows, &add_product, &factorize, &solve};

}  // namespace mlcalib::cpu::MLCALIB_ISA
