// SPDX-License-Identifier: Apache-2.0
// The range search of a group: all rows of a tile together, each with its own best range. Included
// where codes are decided, by units compiled without contraction.
#pragma once

#include "../../decisions.hpp"
#include "vec.hpp"

namespace mlcalib::cpu::MLCALIB_ISA {
namespace {

static_assert(kRowTile % kLanes == 0);
constexpr int64_t kVectors = kRowTile / kLanes;

/// Values, and levels, of the rows of a tile.
struct RowTile {
  Vec at[kVectors];
};
struct RowLevels {
  Level<Vec> at[kVectors];
};

// Extremes of the weights of one vector of rows.
inline Extremes<Vec> extremes_of(const GroupPanel& group, int64_t v, const GridShape& shape) {
  Extremes<Vec> found;
  for (int64_t c = 0; c < group.columns; ++c) {
    found = widened(found, load(group.weight + c * kRowTile + v * kLanes));
  }
  return range_of(found, shape);
}

template <class NumberSet>
inline void diagonal_loss(const GroupPanel& group, const RowLevels& level, NumberSet numbers,
                          RowTile& loss) {
  for (int64_t v = 0; v < kVectors; ++v) {
    Vec sum{};
    for (int64_t c = 0; c < group.columns; ++c) {
      const Vec w = load(group.weight + c * kRowTile + v * kLanes);
      sum += diagonal_term(nearest_error(w, level.at[v], numbers), group.importance, c);
    }
    loss.at[v] = sum;
  }
}

template <class NumberSet>
inline void block_loss(const GroupPanel& group, const RowLevels& level, NumberSet numbers,
                       RowTile& loss) {
  loss = {};
  for (int64_t i = 0; i < group.columns; ++i) {
    const float* gram = group.gram + i * group.gram_stride;
    float* own = group.scratch + i * kRowTile;
    RowTile sum{};
    for (int64_t j = 0; j < i; ++j) {
      const float* error = group.scratch + j * kRowTile;
      for (int64_t v = 0; v < kVectors; ++v) sum.at[v] += load(error + v * kLanes) * gram[j];
    }
    for (int64_t v = 0; v < kVectors; ++v) {
      const Vec w = load(group.weight + i * kRowTile + v * kLanes);
      const Vec d = nearest_error(w, level.at[v], numbers);
      loss.at[v] += block_term(d, gram[i], sum.at[v]);
      store(own + v * kLanes, d);
    }
  }
}

template <class NumberSet>
inline void fit_group(const GroupPanel& group, const GridShape& shape, NumberSet numbers,
                      float* scale, float* zero) {
  Extremes<Vec> extremes[kVectors];
  for (int64_t v = 0; v < kVectors; ++v) extremes[v] = extremes_of(group, v, shape);
  RowLevels best{};
  RowTile least{};
  for (int candidate = 0; candidate < shape.candidates; ++candidate) {
    RowLevels level;
    RowTile loss{};
    for (int64_t v = 0; v < kVectors; ++v) {
      level.at[v] = candidate_level(extremes[v], shape, candidate);
    }
    if (shape.candidates > 1) {
      (group.gram ? block_loss<NumberSet> : diagonal_loss<NumberSet>)(group, level, numbers, loss);
    }
    for (int64_t v = 0; v < kVectors; ++v) {
      const Mask better = candidate == 0 ? ~Mask{} : is_better(loss.at[v], least.at[v]);
      least.at[v] = better ? loss.at[v] : least.at[v];
      best.at[v].scale = better ? level.at[v].scale : best.at[v].scale;
      best.at[v].zero = better ? level.at[v].zero : best.at[v].zero;
    }
  }
  for (int64_t v = 0; v < kVectors; ++v) {
    store(scale + v * kLanes, best.at[v].scale);
    store(zero + v * kLanes, best.at[v].zero);
  }
}

inline void fit_group(const GroupPanel& group, const GridShape& shape, float* scale, float* zero) {
  with_numbers<Vec>(shape, [&](auto numbers) { fit_group(group, shape, numbers, scale, zero); });
}

}  // namespace
}  // namespace mlcalib::cpu::MLCALIB_ISA
