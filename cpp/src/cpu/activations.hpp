// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

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

}  // namespace mlcalib::cpu
