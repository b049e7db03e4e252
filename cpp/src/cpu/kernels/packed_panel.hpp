// SPDX-License-Identifier: Apache-2.0
// Panels: codes of some rows and steps as numbers, beside each other as products take them.
#pragma once

#include "packed.hpp"

namespace mlcalib::cpu::MLCALIB_ISA {
namespace {

// code − zero of one column of some rows, or scale · (code − zero).
template <bool kScaled>
struct Level {
  Vec scale, zero;
  Vec operator()(Vec code) const {
    if constexpr (kScaled) return scale * (code - zero);
    return code - zero;
  }
};

// Steps [first, last) of group g's rows [row, row + kLanes), to panel [element][kRows].
template <bool kInPairs>
void fill(const PackedWeight& w, const uint8_t* tile, int64_t g, int64_t row, int64_t first,
          int64_t last, float* panel) {
  const Level<!kInPairs> level{load_scale(w, tile, g, row), load_zero(w, tile, g, row)};
  const int64_t words = w.bits / 4;
  const int32_t* from = reinterpret_cast<const int32_t*>(tile) + first * words * kPackedRows + row;
  for (int64_t s = first; s < last; ++s, from += words * kPackedRows) {
    Vec column[kPackedColumns];
    const Mask low = load_words(from);
    if (w.bits == 4) {
#pragma GCC unroll 8
      for (int64_t p = 0; p < 8; ++p) column[nibble_column(p)] = level(nibble(low, p));
    } else {
      const Mask high = load_words(from + kPackedRows);
#pragma GCC unroll 8
      for (int64_t c = 0; c < 8; ++c) column[c] = level(octet(c < 4 ? low : high, c % 4));
    }
    if constexpr (kInPairs) {
#pragma GCC unroll 4
      for (int64_t c = 0; c < 8; c += 2, panel += kRows) {
        store(panel, pair_of(column[c], column[c + 1]));
      }
    } else {
#pragma GCC unroll 8
      for (int64_t c = 0; c < 8; ++c, panel += kRows) store(panel, column[c]);
    }
  }
}

}  // namespace
}  // namespace mlcalib::cpu::MLCALIB_ISA
