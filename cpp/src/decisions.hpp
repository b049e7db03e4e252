// SPDX-License-Identifier: Apache-2.0
// What decides codes: levels, the candidates of the range search, losses and ties. The one
// definition for host and device: T is float, the number of one row, or a vector of the numbers of
// several. What numbers a grid has is written in units.hpp. Units that include this are compiled
// without contraction and with IEEE division (-ffp-contract=off; -fmad=false -prec-div=true), so
// that every device and instruction set decides the same from the same numbers, bit for bit.
#pragma once

#include "grid_shape.hpp"
#include "host_device.hpp"
#include "units.hpp"

namespace mlcalib {

inline constexpr float kShrinkStep = 0.03F;
inline constexpr int kNarrower = 10;  // candidates of a signed scale that do not widen the range
inline constexpr float kSmallestScale = 1.17549435e-38F;  // FLT_MIN: a group of zeros is zeros

// ---- Levels ----

/// What a code stands for.
template <class T, class NumberSet>
MLCALIB_HD T value_of(T code, Level<T> level, NumberSet numbers) {
  return weight_of(unit_of(code, level, numbers), level, numbers);
}

/// w − ŵ of the nearest level.
template <class T, class NumberSet>
MLCALIB_HD T nearest_error(T weight, Level<T> level, NumberSet numbers) {
  return weight - weight_of(nearest_unit(weight, level, numbers), level, numbers);
}

// ---- The range of a group ----

/// Extremes of weights; they always hold zero.
template <class T>
struct Extremes {
  T low{};
  T high{};
};

template <class T>
MLCALIB_HD Extremes<T> widened(Extremes<T> extremes, T weight) {
  return {min_of(extremes.low, weight), max_of(extremes.high, weight)};
}

template <class T>
MLCALIB_HD Extremes<T> balanced(Extremes<T> extremes) {
  const T high = max_of(extremes.high, -extremes.low);
  return {-high, high};
}

/// What candidates are made of.
template <class T>
MLCALIB_HD Extremes<T> range_of(Extremes<T> extremes, const GridShape& shape) {
  return shape.symmetric && !shape.signed_scales ? balanced(extremes) : extremes;
}

/// The candidate-th scale that has the sign which lets the larger extreme be code 0. As in
/// llama.cpp, that code is the extreme itself, then 1/4, 2/4, … of a level less than the extreme,
/// and at last 1/4 … 4/4 more: rounding by scales that differ little is what a group gains by where
/// it has few weights and many levels.
template <class T>
MLCALIB_HD Level<T> signed_level(Extremes<T> extremes, const GridShape& shape, int candidate) {
  const float middle = (shape.largest + 1.0F) / 2;
  const int quarters = candidate < kNarrower ? candidate : kNarrower - 1 - candidate;
  const float levels = middle + 0.25F * static_cast<float>(quarters);
  const T extreme = max_of(extremes.high, -extremes.low);
  const T scale = max_of(extreme / levels, splat<T>(kSmallestScale));
  return {extremes.high > -extremes.low ? -scale : scale, splat<T>(middle)};
}

/// The candidate-th level of a range_of.
template <class T>
MLCALIB_HD Level<T> candidate_level(Extremes<T> extremes, const GridShape& shape, int candidate) {
  const float shrink = 1.0F - kShrinkStep * static_cast<float>(candidate);
  if (shape.numbers != Numbers::kInteger) {
    return {max_of(scale_of(extremes.high * shrink, shape), splat<T>(kSmallestScale)), T{}};
  }
  if (shape.signed_scales) return signed_level(extremes, shape, candidate);
  const T max_code = splat<T>(shape.largest);
  const T scale =
      max_of((extremes.high - extremes.low) * shrink / max_code, splat<T>(kSmallestScale));
  if (shape.symmetric) return {scale, splat<T>((shape.largest + 1.0F) / 2)};
  if (shape.minima) return {scale, T{} - extremes.low * shrink};
  return {scale, round_nearest(min_of(max_of(-(extremes.low * shrink) / scale, T{}), max_code))};
}

/// A column's share of Σ_c importance_c d_c².
template <class T>
MLCALIB_HD T diagonal_term(T error, const float* importance, int64_t column) {
  return importance != nullptr ? error * error * importance[column] : error * error;
}

/// A column's share of d G dᵀ = Σ_i d_i (G_ii d_i + 2 Σ_{j<i} G_ij d_j), given the inner sum.
template <class T>
MLCALIB_HD T block_term(T error, float diagonal, T sum) {
  return error * (error * diagonal + sum * 2.0F);
}

/// The first of the least losses. One that is not a number is never better, nor bettered.
template <class T>
MLCALIB_HD auto is_better(T loss, T best) {
  return loss < best;
}

// ---- GPTQ ----

/// One column decided.
template <class T>
struct Decision {
  T unit;
  T error;     ///< w − ŵ
  T residual;  ///< R_kk (target − ŵ)
};

template <class T, class NumberSet>
MLCALIB_HD Decision<T> decide(T weight, T target, Level<T> level, float diagonal,
                              NumberSet numbers) {
  const T unit = nearest_unit(target, level, numbers);
  const T quantized = weight_of(unit, level, numbers);
  return {unit, weight - quantized, (target - quantized) * diagonal};
}

/// A later column's target, once an earlier one was decided.
template <class T>
MLCALIB_HD T fed_back(T target, T error, float factor) {
  return target + error * factor;
}

// ---- Coordinate descent ----

/// What one weight becomes where all others stay.
template <class T>
struct Step {
  T unit;
  T change;
};

/// The best step from a value: the loss is a parabola, so that is to the level nearest to its
/// lowest point. `gradient` is half the loss's slope, and `curvature` half its second derivative.
template <class T, class NumberSet>
MLCALIB_HD Step<T> best_step(T value, T gradient, T curvature, Level<T> level, NumberSet numbers) {
  const T unit = nearest_unit(value - gradient / curvature, level, numbers);
  return {unit, weight_of(unit, level, numbers) - value};
}

// ---- AWQ ----

/// (w·f − Q(w·f)) / f for scaled = w·f.
template <class T, class NumberSet>
MLCALIB_HD T scaled_error(T scaled, Level<T> level, float inverse, NumberSet numbers) {
  return nearest_error(scaled, level, numbers) * inverse;
}

}  // namespace mlcalib
