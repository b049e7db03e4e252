// SPDX-License-Identifier: Apache-2.0
// The numbers that scales multiply: which is nearest, its code, and back. A set of numbers is a
// type, with these three functions; kernels are compiled once for each. For the rules see
// decisions.hpp, which includes it.
#pragma once

#include "grid_shape.hpp"
#include "host_device.hpp"

namespace mlcalib {

/// Of one row's group: its scale, and its zero point or minimum.
template <class T>
struct Level {
  T scale;
  T zero;
};

/// Half to even, for |x| < 2^22: adding 1.5 · 2^23 leaves no fraction bits.
template <class T>
MLCALIB_HD T round_nearest(T x) {
  const float magic = 12582912.0F;
  return (x + magic) - magic;
}

// ---- Integers from −zero to max_code − zero ----

template <class T>
struct Integers {
  T max_code;
};

/// The number that scale multiplies in the nearest level, the unit: here code − zero. Clamped
/// before it is rounded: the bounds are integers.
template <class T>
MLCALIB_HD T nearest_unit(T weight, Level<T> level, Integers<T> numbers) {
  return round_nearest(
      min_of(max_of(weight / level.scale, -level.zero), numbers.max_code - level.zero));
}

/// The code of a unit.
template <class T>
MLCALIB_HD T code_of(T unit, Level<T> level, Integers<T>) {
  return unit + level.zero;
}

/// The unit of a code.
template <class T>
MLCALIB_HD T unit_of(T code, Level<T> level, Integers<T>) {
  return code - level.zero;
}

/// The weight that a unit stands for: of all numbers but those with a minimum.
template <class T, class NumberSet>
MLCALIB_HD T weight_of(T unit, Level<T> level, NumberSet) {
  return level.scale * unit;
}

// ---- Integers from 0 to max_code above a minimum ----

/// The weight of a code is scale · code − zero: zero is a float, as in the blocks of GGUF.
template <class T>
struct Raised {
  T max_code;
};

template <class T>
MLCALIB_HD T nearest_unit(T weight, Level<T> level, Raised<T> numbers) {
  return round_nearest(min_of(max_of((weight + level.zero) / level.scale, T{}), numbers.max_code));
}

template <class T>
MLCALIB_HD T code_of(T unit, Level<T>, Raised<T>) {
  return unit;
}

template <class T>
MLCALIB_HD T unit_of(T code, Level<T>, Raised<T>) {
  return code;
}

template <class T>
MLCALIB_HD T weight_of(T unit, Level<T> level, Raised<T>) {
  return level.scale * unit - level.zero;
}

// ---- Floats of few bits ----

/// A sign, kExponent bits of exponent and kMantissa of mantissa; kLargest is the largest finite
/// one. The code is the sign, the exponent and the mantissa, from the highest bit on; there is no
/// −0 among nearest units.
template <int kExponent, int kMantissa, int kLargest>
struct Floats {
  static constexpr int kLowest = 2 - (1 << (kExponent - 1));  ///< exponent of the smallest normal
  static constexpr float kSmallestNormal =
      kLowest < 0 ? 1.0F / static_cast<float>(1 << -kLowest) : static_cast<float>(1 << kLowest);
  static constexpr float kStep = kSmallestNormal / static_cast<float>(1 << kMantissa);
  static constexpr float kNegative = static_cast<float>(1 << (kExponent + kMantissa));
};
using E2m1 = Floats<2, 1, 6>;
using E4m3 = Floats<4, 3, 448>;

inline constexpr int kFloatMantissa = 23, kFloatBias = 127;
inline constexpr int32_t kExponentBits = 0x7f800000;

/// 2^⌊log₂|x|⌋; 0 below the normal floats.
template <class T>
MLCALIB_HD T power_below(T x) {
  return of_bits<T>(bits_of(x) & kExponentBits);
}

/// Half to even: adding 1.5 · 2^(23 + e) leaves no bits below 2^e.
template <class T, int kExponent, int kMantissa, int kLargest>
MLCALIB_HD T nearest_float(T x, Floats<kExponent, kMantissa, kLargest>) {
  using Set = Floats<kExponent, kMantissa, kLargest>;
  const T largest = splat<T>(kLargest);
  const T inside = min_of(max_of(x, -largest), largest);
  const T power = max_of(power_below(inside), splat<T>(Set::kSmallestNormal));
  const T magic = power * (1.5F * static_cast<float>(1 << (kFloatMantissa - kMantissa)));
  return (inside + magic) - magic;
}

template <class T, int kExponent, int kMantissa, int kLargest>
MLCALIB_HD T nearest_unit(T weight, Level<T> level,
                          Floats<kExponent, kMantissa, kLargest> numbers) {
  return nearest_float(weight / level.scale, numbers);
}

/// A whole number of at most 22 bits, as float, and back.
template <class T>
MLCALIB_HD T to_whole(typename BitsOf<T>::type whole) {
  return of_bits<T>(whole + 0x4b000000) - 8388608.0F;
}
template <class T>
MLCALIB_HD typename BitsOf<T>::type of_whole(T x) {
  return bits_of(x + 8388608.0F) - 0x4b000000;
}

template <class T, int kExponent, int kMantissa, int kLargest>
MLCALIB_HD T code_of(T unit, Level<T>, Floats<kExponent, kMantissa, kLargest>) {
  using Set = Floats<kExponent, kMantissa, kLargest>;
  const T magnitude = max_of(unit, -unit);
  const T subnormal = magnitude * (1.0F / Set::kStep);
  const T normal = to_whole<T>((bits_of(magnitude) >> (kFloatMantissa - kMantissa)) -
                               ((kFloatBias - 1 + Set::kLowest) << kMantissa));
  const T code = magnitude < splat<T>(Set::kSmallestNormal) ? subnormal : normal;
  return unit < T{} ? code + Set::kNegative : code;
}

template <class T, int kExponent, int kMantissa, int kLargest>
MLCALIB_HD T unit_of(T code, Level<T>, Floats<kExponent, kMantissa, kLargest>) {
  using Set = Floats<kExponent, kMantissa, kLargest>;
  const T negative = splat<T>(Set::kNegative);
  const T magnitude = code < negative ? code : code - negative;
  const T subnormal = magnitude * Set::kStep;
  const T normal = of_bits<T>((of_whole(magnitude) << (kFloatMantissa - kMantissa)) +
                              ((kFloatBias - 1 + Set::kLowest) << kFloatMantissa));
  const T unit = magnitude < splat<T>(1 << kMantissa) ? subnormal : normal;
  return code < negative ? unit : -unit;
}

// ---- NormalFloat ----

struct Nf4 {};

/// Number i of 16, in rising order: those of the authors' code.
MLCALIB_HD constexpr float nf4_number(int i) {
  constexpr float numbers[16] = {-1.0F,
                                 -0.6961928009986877F,
                                 -0.5250730514526367F,
                                 -0.39491748809814453F,
                                 -0.28444138169288635F,
                                 -0.18477343022823334F,
                                 -0.09105003625154495F,
                                 0.0F,
                                 0.07958029955625534F,
                                 0.16093020141124725F,
                                 0.24611230194568634F,
                                 0.33791524171829224F,
                                 0.44070982933044434F,
                                 0.5626170039176941F,
                                 0.7229568362236023F,
                                 1.0F};
  return numbers[i];
}

/// Half-way between numbers i and i + 1, which belongs to number i.
MLCALIB_HD constexpr float nf4_bound(int i) { return (nf4_number(i) + nf4_number(i + 1)) / 2; }

/// By the inverse of the scale, as the authors' code does.
template <class T>
MLCALIB_HD T nearest_unit(T weight, Level<T> level, Nf4) {
  const T x = weight * (1.0F / level.scale);
  T unit = splat<T>(nf4_number(0));
#pragma GCC unroll 15
  for (int i = 0; i < 15; ++i)
    unit = x > splat<T>(nf4_bound(i)) ? splat<T>(nf4_number(i + 1)) : unit;
  return unit;
}

template <class T>
MLCALIB_HD T code_of(T unit, Level<T>, Nf4) {
  T code{};
#pragma GCC unroll 15
  for (int i = 0; i < 15; ++i) code = unit > splat<T>(nf4_bound(i)) ? code + 1.0F : code;
  return code;
}

template <class T>
MLCALIB_HD T unit_of(T code, Level<T>, Nf4) {
  T unit = splat<T>(nf4_number(0));
#pragma GCC unroll 15
  for (int i = 0; i < 15; ++i) {
    unit = code > splat<T>(static_cast<float>(i)) ? splat<T>(nf4_number(i + 1)) : unit;
  }
  return unit;
}

// ---- All of them ----

/// Calls run(numbers) with the type of a grid's numbers.
template <class T, class Run>
static inline void with_numbers(const GridShape& shape, const Run& run) {
  switch (shape.numbers) {
    case Numbers::kInteger:
      if (shape.minima) return run(Raised<T>{splat<T>(shape.largest)});
      return run(Integers<T>{splat<T>(shape.largest)});
    case Numbers::kNf4:
      return run(Nf4{});
    case Numbers::kE2m1:
      return run(E2m1{});
    case Numbers::kE4m3:
      return run(E4m3{});
  }
}

/// The largest number, which the extremes of a group become; not of integers.
MLCALIB_HD float largest_number(Numbers numbers) {
  return numbers == Numbers::kNf4 ? 1.0F : numbers == Numbers::kE2m1 ? 6.0F : 448.0F;
}

/// The scale that turns the largest number into the magnitude `extreme`, as the grid can hold it.
/// Powers of two are those of OCP MX readers: extremes of up to 7/4 of a power count as that power.
template <class T>
MLCALIB_HD T scale_of(T extreme, const GridShape& shape) {
  if (shape.scales == Scales::kPowers) {
    const auto rounded = bits_of(extreme) + (1 << (kFloatMantissa - 2));
    return of_bits<T>(rounded & kExponentBits) * (1.0F / power_below(shape.largest));
  }
  const T scale = extreme / shape.largest;
  if (shape.scales == Scales::kAny) return scale;
  const T number = nearest_float(scale * shape.global_scale, E4m3{});
  return max_of(number, splat<T>(E4m3::kStep)) / shape.global_scale;
}

}  // namespace mlcalib
