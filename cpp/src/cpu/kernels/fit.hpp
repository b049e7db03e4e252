// SPDX-License-Identifier: Apache-2.0
// The range search of a group: all rows of a tile together, each with its own best range.
#pragma once

#include "rounding.hpp"

namespace mlcalib::cpu::MLCALIB_ISA {
namespace {

constexpr float kSmallestScale = 1.17549435e-38F;  // FLT_MIN: a group of zeros divides to zeros
constexpr float kShrinkStep = 0.03F;

/// Values of the rows of a tile.
struct RowTile {
  Vec at[kVectors];
};

// Extremes of a tile's weights; the range always holds zero.
inline void extremes(const GroupPanel& group, bool symmetric, RowTile& low, RowTile& high) {
  for (int64_t v = 0; v < kVectors; ++v) {
    Vec lowest{}, highest{};
    for (int64_t c = 0; c < group.columns; ++c) {
      const Vec w = load(group.weight + c * kRowTile + v * kLanes);
      lowest = min_of(lowest, w);
      highest = max_of(highest, w);
    }
    if (symmetric) {
      highest = max_of(highest, -lowest);
      lowest = -highest;
    }
    low.at[v] = lowest;
    high.at[v] = highest;
  }
}

// Squared error, each column's weighted by its importance: dᵀ diag(G) d.
inline void diagonal_loss(const GroupPanel& group, const RowTile& scale, const RowTile& zero,
                          Vec max_code, RowTile& loss) {
  for (int64_t v = 0; v < kVectors; ++v) {
    Vec sum{};
    for (int64_t c = 0; c < group.columns; ++c) {
      const Vec w = load(group.weight + c * kRowTile + v * kLanes);
      const Vec d = w - scale.at[v] * nearest_level(w, scale.at[v], zero.at[v], max_code);
      sum += group.importance ? d * d * group.importance[c] : d * d;
    }
    loss.at[v] = sum;
  }
}

// dᵀ G d with the group's block of the Gram: d_i (G_ii d_i + 2 Σ_{j<i} G_ij d_j).
inline void block_loss(const GroupPanel& group, const RowTile& scale, const RowTile& zero,
                       Vec max_code, RowTile& loss) {
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
      const Vec d = w - scale.at[v] * nearest_level(w, scale.at[v], zero.at[v], max_code);
      loss.at[v] += d * (d * gram[i] + sum.at[v] * 2.0F);
      store(own + v * kLanes, d);
    }
  }
}

inline void fit_group(const GroupPanel& group, const GridShape& shape, float* scale, float* zero) {
  const Vec max_code = broadcast(shape.max_code);
  RowTile low, high, best{}, best_scale{}, best_zero{};
  extremes(group, shape.symmetric, low, high);
  for (int candidate = 0; candidate < shape.candidates; ++candidate) {
    const float shrink = 1.0F - kShrinkStep * static_cast<float>(candidate);
    RowTile s, z, loss{};
    for (int64_t v = 0; v < kVectors; ++v) {
      s.at[v] = max_of((high.at[v] - low.at[v]) * shrink / max_code, broadcast(kSmallestScale));
      z.at[v] =
          shape.symmetric
              ? broadcast((shape.max_code + 1.0F) / 2)
              : round_nearest(min_of(max_of(-(low.at[v] * shrink) / s.at[v], Vec{}), max_code));
    }
    if (shape.candidates > 1) {
      (group.gram ? block_loss : diagonal_loss)(group, s, z, max_code, loss);
    }
    for (int64_t v = 0; v < kVectors; ++v) {
      const Mask better = candidate == 0 ? ~Mask{} : loss.at[v] < best.at[v];
      best.at[v] = better ? loss.at[v] : best.at[v];
      best_scale.at[v] = better ? s.at[v] : best_scale.at[v];
      best_zero.at[v] = better ? z.at[v] : best_zero.at[v];
    }
  }
  for (int64_t v = 0; v < kVectors; ++v) {
    store(scale + v * kLanes, best_scale.at[v]);
    store(zero + v * kLanes, best_zero.at[v]);
  }
}

}  // namespace
}  // namespace mlcalib::cpu::MLCALIB_ISA
