// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>

#include "kernels/kernels.hpp"

namespace mlcalib::cpu {

inline Element element_of(at::ScalarType type) {
  switch (type) {
    case at::kBFloat16:
      return Element::kBFloat16;
    case at::kHalf:
      return Element::kHalf;
    default:
      return Element::kFloat;
  }
}

inline Element element_of(const at::Tensor& x) { return element_of(x.scalar_type()); }

/// Tokens [first, first + count) of x [tokens, channels], whose channels are contiguous.
inline Activations activations(const at::Tensor& x, int64_t first, int64_t count) {
  const char* data = static_cast<const char*>(x.const_data_ptr());
  return {.data = data + first * x.stride(0) * x.element_size(),
          .element = element_of(x),
          .tokens = count,
          .channels = x.size(1),
          .stride = x.stride(0)};
}

/// Tokens of a piece of x [tokens, channels]: a piece stays in the second-level cache, and is a
/// multiple of what the Gram's kernel takes at a time, so that pieces change no sum.
inline int64_t piece_tokens(const GramKernels& kernels, const at::Tensor& x) {
  constexpr int64_t kPieceBytes = 1 << 20;
  const int64_t at_once = kernels.tokens(element_of(x));
  const int64_t fitting = kPieceBytes / (x.size(1) * x.element_size());
  return std::max<int64_t>(fitting / at_once, 1) * at_once;
}

}  // namespace mlcalib::cpu
