// SPDX-License-Identifier: Apache-2.0
// What host and device code share. Plain C++ without std and ATen code: kernels include it. A
// function has a copy of its own in every unit, for units are compiled for different processors.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define MLCALIB_HD __host__ __device__ static inline
#define MLCALIB_MEMCPY memcpy
#else
#define MLCALIB_HD static inline
#define MLCALIB_MEMCPY __builtin_memcpy
#endif

namespace mlcalib {

/// a / b, rounded up.
MLCALIB_HD constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

/// x in every lane. x − 0 is x, also for −0: it folds to a broadcast, which 0 + x does not.
template <class T>
MLCALIB_HD T splat(float x) {
  return x - T{};
}

template <class T>
MLCALIB_HD T min_of(T a, T b) {
  return a < b ? a : b;
}

template <class T>
MLCALIB_HD T max_of(T a, T b) {
  return a > b ? a : b;
}

/// Integers of as many lanes as T, of 32 bits each.
template <class T>
struct BitsOf {
  using type = decltype(T{} < T{});
};
template <>
struct BitsOf<float> {
  using type = int32_t;
};

/// The bits of floats.
template <class T>
MLCALIB_HD typename BitsOf<T>::type bits_of(T x) {
  typename BitsOf<T>::type bits;
  MLCALIB_MEMCPY(&bits, &x, sizeof x);
  return bits;
}

/// The floats that have these bits.
template <class T>
MLCALIB_HD T of_bits(typename BitsOf<T>::type bits) {
  T x;
  MLCALIB_MEMCPY(&x, &bits, sizeof x);
  return x;
}

}  // namespace mlcalib
