// SPDX-License-Identifier: Apache-2.0
// One step of a matrix product: a vector of floats, or of pairs of bfloat16, times an element of
// its kind.
#pragma once

#include "vec.hpp"

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

namespace mlcalib::cpu::MLCALIB_ISA {
namespace {

/// Whether bfloat16 is multiplied in pairs.
#ifdef __AVX512BF16__
constexpr bool kPairs = true;
#else
constexpr bool kPairs = false;
#endif

struct Floats {
  static Vec multiply_add(Vec sum, float a, Vec b) { return sum + broadcast(a) * b; }
};

#ifdef __AVX512BF16__
struct Pairs {
  // sum + a₀b₀ + a₁b₁ of bfloat16 pairs; products are exact, sums round in fp32.
  static Vec multiply_add(Vec sum, float a, Vec b) {
    int32_t bits;
    __builtin_memcpy(&bits, &a, sizeof bits);
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(_mm512_set1_epi32(bits)),
                            reinterpret_cast<__m512bh>(b));
  }
};
#endif

}  // namespace
}  // namespace mlcalib::cpu::MLCALIB_ISA
