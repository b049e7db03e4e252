// SPDX-License-Identifier: Apache-2.0
// Vectors of one instruction set: included by translation units that are compiled once for each,
// with MLCALIB_ISA and MLCALIB_VECTOR_BYTES set.
#pragma once

#include "../../host_device.hpp"
#include "kernels.hpp"

namespace mlcalib::cpu::MLCALIB_ISA {
namespace {

constexpr int64_t kLanes = MLCALIB_VECTOR_BYTES / sizeof(float);

using Vec = float __attribute__((vector_size(MLCALIB_VECTOR_BYTES)));
using Mask = int32_t __attribute__((vector_size(MLCALIB_VECTOR_BYTES)));
using Bits = uint32_t __attribute__((vector_size(MLCALIB_VECTOR_BYTES)));
using Bytes = uint8_t __attribute__((vector_size(MLCALIB_VECTOR_BYTES / sizeof(float))));

inline Vec load(const float* p) {
  Vec v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

inline void store(float* p, Vec v) { __builtin_memcpy(p, &v, sizeof v); }

}  // namespace
}  // namespace mlcalib::cpu::MLCALIB_ISA
