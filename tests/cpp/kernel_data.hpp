// SPDX-License-Identifier: Apache-2.0
// Weights that are hard to round, and the comparison of kernels bit for bit.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "grid_shape.hpp"

namespace mlcalib::kernel_data {

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

enum class Values { kNormal, kZeros, kTiny, kSubnormal, kLarge, kTies, kNegative, kMixed };
inline constexpr std::array kAllValues{Values::kNormal,    Values::kZeros, Values::kTiny,
                                       Values::kSubnormal, Values::kLarge, Values::kTies,
                                       Values::kNegative,  Values::kMixed};
inline constexpr std::array kNames{"Normal", "Zeros", "Tiny",     "Subnormal",
                                   "Large",  "Ties",  "Negative", "Mixed"};

/// Integers of 4 bits, and all other numbers with all kinds of scales.
inline constexpr GridShape kShape{15, false, 14};
inline constexpr std::array kOtherShapes{
    GridShape{1, true, 14, Numbers::kNf4},
    GridShape{6, true, 1, Numbers::kE2m1},
    GridShape{6, true, 14, Numbers::kE2m1, Scales::kPowers},
    GridShape{6, true, 14, Numbers::kE2m1, Scales::kE4m3, 0.37F},
    GridShape{448, true, 14, Numbers::kE4m3},
    GridShape{448, true, 1, Numbers::kE4m3, Scales::kPowers}};
/// Integers whose scales have a sign.
inline constexpr std::array kSignedShapes{
    GridShape{.largest = 3, .symmetric = true, .candidates = 14, .signed_scales = true},
    GridShape{.largest = 7, .symmetric = true, .candidates = 1, .signed_scales = true},
    GridShape{.largest = 63, .symmetric = true, .candidates = 14, .signed_scales = true}};

inline std::vector<float> draw(Values values, int64_t count, uint32_t seed) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal;
  const auto one = [&](Values kind) -> float {
    switch (kind) {
      case Values::kNormal:
        return normal(engine);
      case Values::kZeros:
        return engine() % 2 == 0 ? 0.0F : -0.0F;
      case Values::kTiny:
        return normal(engine) * 1e-38F;
      case Values::kSubnormal:
        return normal(engine) * 1e-42F;
      case Values::kLarge:
        return normal(engine) * 1e30F;
      // Halves, between the levels of every scale that is a power of two.
      case Values::kTies:
        return (static_cast<float>(engine() % 32) - 16.0F) / 2;
      case Values::kNegative:
        return -std::abs(normal(engine));
      case Values::kMixed:
        break;
    }
    return 0;
  };
  std::vector<float> drawn(count);
  for (float& value : drawn) {
    value = one(values == Values::kMixed ? kAllValues[engine() % (kAllValues.size() - 1)] : values);
  }
  return drawn;
}

// A positive semidefinite block [columns][columns] with some channels dead.
inline std::vector<float> draw_gram(int64_t columns) {
  const std::vector<float> x = draw(Values::kNormal, columns * 7, 2);
  std::vector<float> gram(columns * columns);
  for (int64_t i = 0; i < columns; ++i) {
    for (int64_t j = 0; j < columns; ++j) {
      for (int64_t t = 0; t < 7; ++t)
        gram[i * columns + j] += x[t * columns + i] * x[t * columns + j];
      if (i % 5 == 4 || j % 5 == 4) gram[i * columns + j] = 0;
    }
  }
  return gram;
}

}  // namespace mlcalib::kernel_data
