// SPDX-License-Identifier: Apache-2.0
// A matrix product's inner loop. Elements are floats, or pairs of bfloat16.
#pragma once

#include "vec.hpp"

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

namespace mlcalib::cpu::MLCALIB_ISA {
namespace {

// 24 sums (AVX-512) or 12 (AVX2), with three vectors and a broadcast, fill the register file.
constexpr int64_t kProductStrips = 3;
constexpr int64_t kProductColumns = kProductStrips * kLanes;
constexpr int64_t kProductRows = kLanes / 2;

/// Whether bfloat16 is multiplied in pairs.
#ifdef __AVX512BF16__
constexpr bool kPairs = true;
#else
constexpr bool kPairs = false;
#endif

struct Floats {
  static Vec multiply_add(Vec sum, float a, Vec b) { return sum + splat<Vec>(a) * b; }
};

#ifdef __AVX512BF16__
struct Pairs {
  // sum + a₀b₀ + a₁b₁ of bfloat16 pairs; products are exact, sums round in fp32.
  static Vec multiply_add(Vec sum, float a, Vec b) {
    int32_t bits;
    __builtin_memcpy(&bits, &a, sizeof bits);
#ifdef __clang__
    // Clang 16 crashes where a vector becomes one of its bfloat16.
    asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(_mm512_set1_epi32(bits)), "v"(b));
    return sum;
#else
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(_mm512_set1_epi32(bits)),
                            reinterpret_cast<__m512bh>(b));
#endif
  }
};
#endif

/// sum[r][s] += Σ_t left[t * left_step + r] · right[s][t * right_step …].
template <class Product>
inline void multiply(const float* left, int64_t left_step, const float* const* right,
                     int64_t right_step, int64_t steps, Vec (&sum)[kProductRows][kProductStrips]) {
  for (int64_t t = 0; t < steps; ++t) {
    Vec vectors[kProductStrips];
#pragma GCC unroll 3
    for (int64_t s = 0; s < kProductStrips; ++s) vectors[s] = load(right[s] + t * right_step);
#pragma GCC unroll 8
    for (int64_t r = 0; r < kProductRows; ++r) {
#pragma GCC unroll 3
      for (int64_t s = 0; s < kProductStrips; ++s) {
        sum[r][s] = Product::multiply_add(sum[r][s], left[t * left_step + r], vectors[s]);
      }
    }
  }
}

}  // namespace
}  // namespace mlcalib::cpu::MLCALIB_ISA
