// SPDX-License-Identifier: Apache-2.0
// Activations as sums of bfloat16 terms, which tiles multiply: fp16 is two exactly, fp32 three.
#pragma once

#include "element.hpp"

namespace mlcalib::cpu::MLCALIB_ISA {
namespace {

constexpr int terms_of(Element element) {
  return element == Element::kBFloat16 ? 1 : (element == Element::kHalf ? 2 : 3);
}

inline Bits to_bits(Vec x) { return reinterpret_cast<Bits>(x); }

/// In the upper half of each lane, the nearest bfloat16.
inline Bits round_to_bfloat16(Vec x) {
  const Bits bits = to_bits(x);
  return (bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000;
}

}  // namespace
}  // namespace mlcalib::cpu::MLCALIB_ISA
