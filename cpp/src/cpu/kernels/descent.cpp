// SPDX-License-Identifier: Apache-2.0
// Coordinate descent on codes. Compiled without contraction: codes are decided here.
#include "fit.hpp"

namespace mlcalib::cpu::MLCALIB_ISA {
namespace {

/// The rows of a tile in one column.
struct Column {
  Vec gradient[kVectors];
  Vec value[kVectors];     ///< ŵ
  float code[kRowTile];    ///< the best one of each row, were it the only one to change
  float change[kRowTile];  ///< of ŵ, if the row took that
};

Level<Vec> level_of(const DescentBlock& b, int64_t k, int64_t v) {
  const int64_t at = b.group[k] * kRowTile + v * kLanes;
  return {load(b.scale + at), load(b.zero + at)};
}

template <class NumberSet>
Column load_column(const DescentBlock& b, int64_t k, NumberSet numbers) {
  Column column;
  for (int64_t v = 0; v < kVectors; ++v) {
    const int64_t at = k * kRowTile + v * kLanes;
    column.gradient[v] = load(b.gradient + at);
    Bytes bytes;
    __builtin_memcpy(&bytes, b.codes + at, sizeof bytes);
    const Vec code = __builtin_convertvector(__builtin_convertvector(bytes, Mask), Vec);
    column.value[v] = value_of(code, level_of(b, k, v), numbers);
  }
  return column;
}

/// The best codes of the rows in vectors from `first` on.
template <class NumberSet>
void find_best(const DescentBlock& b, int64_t k, int64_t first, Column& column, NumberSet numbers) {
  const float curvature = b.gram[k * b.gram_stride + k];
  for (int64_t v = first; v < kVectors; ++v) {
    const int64_t lane = v * kLanes;
    const Level<Vec> level = level_of(b, k, v);
    const Step<Vec> step = best_step(column.value[v], column.gradient[v],
                                     load(b.diagonal + lane) * curvature, level, numbers);
    store(column.code + lane, code_of(step.unit, level, numbers));
    store(column.change + lane, step.change);
  }
}

int64_t first_to_change(const Column& column, int64_t from) {
  while (from < kRowTile && column.change[from] == 0) ++from;
  return from;
}

/// One row after the other takes its best code, with what those before it changed in mind.
template <class NumberSet>
bool descend_column(const DescentBlock& b, int64_t k, Vec (&moved)[kVectors], NumberSet numbers) {
  const float curvature = b.gram[k * b.gram_stride + k];
  float* changed = b.change + k * kRowTile;
  for (int64_t i = 0; i < kRowTile; ++i) changed[i] = 0;
  Column column = load_column(b, k, numbers);
  find_best(b, k, 0, column, numbers);
  int64_t row = first_to_change(column, 0);
  if (row == kRowTile) return false;
  for (; row < kRowTile; row = first_to_change(column, row + 1)) {
    const float change = column.change[row];
    b.codes[k * kRowTile + row] = static_cast<uint8_t>(column.code[row]);
    changed[row] = change;
    const float* output = b.output + row * kRowTile;
    for (int64_t v = 0; v < kVectors; ++v) {
      const Vec felt = load(output + v * kLanes) * change;
      moved[v] += felt;
      column.gradient[v] += felt * curvature;
    }
    find_best(b, k, (row + 1) / kLanes, column, numbers);
  }
  return true;
}

template <class NumberSet>
void descend(const DescentBlock& b, NumberSet numbers) {
  for (int64_t k = 0; k < b.columns; ++k) {
    Vec moved[kVectors] = {};
    if (!descend_column(b, k, moved, numbers)) continue;
    float* felt = b.felt + k * kRowTile;
    for (int64_t v = 0; v < kVectors; ++v) {
      store(felt + v * kLanes, load(felt + v * kLanes) + moved[v]);
    }
    const float* gram = b.gram + k * b.gram_stride;
    for (int64_t j = k + 1; j < b.columns; ++j) {
      float* gradient = b.gradient + j * kRowTile;
      for (int64_t v = 0; v < kVectors; ++v) {
        store(gradient + v * kLanes, load(gradient + v * kLanes) + moved[v] * gram[j]);
      }
    }
  }
}

void descend_block(const DescentBlock& block) {
  with_numbers<Vec>(block.shape, [&](auto numbers) { descend(block, numbers); });
}

}  // namespace

extern const DescentKernels descent_kernels;
const DescentKernels descent_kernels = {&descend_block};

}  // namespace mlcalib::cpu::MLCALIB_ISA
