// SPDX-License-Identifier: Apache-2.0
// Products of float32 matrices on tensor cores, which multiply bfloat16: a matrix is the sum of two
// bfloat16 terms, and a product the sum of their products. As exact as float32 to 16 bits, several
// times as fast.
#pragma once

#include <ATen/TensorOperators.h>

namespace mlcalib::cuda {

/// A matrix as high + low, bfloat16; low is undefined where there is nothing left for it.
struct Terms {
  at::Tensor high;
  at::Tensor low;
};

/// |x − high − low| ≤ 2⁻¹⁷ |x|, and nothing where x is bfloat16 or float16 (of magnitude 2⁻¹²⁴ or
/// more: what is below the range of bfloat16 is lost).
inline Terms terms_of(const at::Tensor& x) {
  if (x.scalar_type() == at::kBFloat16) return {x, {}};
  const at::Tensor wide = x.to(at::kFloat), high = wide.to(at::kBFloat16);
  return {high, (wide - high).to(at::kBFloat16)};
}

/// Calls add(a, b) with the pairs of terms whose products add up to x y, within 2⁻¹⁶ of Σ |x| |y|.
/// All pairs: xᵀx then is the Gram of a matrix very near x, so that what cancels in ⟨xᵀx, G⟩ leaves
/// as little behind as x itself does.
template <class Add>
void for_each_product(const Terms& x, const Terms& y, const Add& add) {
  for (const at::Tensor& a : {x.high, x.low}) {
    for (const at::Tensor& b : {y.high, y.low}) {
      if (a.defined() && b.defined()) add(a, b);
    }
  }
}

}  // namespace mlcalib::cuda
