// SPDX-License-Identifier: Apache-2.0
// Products of float32 matrices on tensor cores, which multiply bfloat16: a matrix is the sum of two
// or three bfloat16 terms, and a product the sum of their products. As exact as float32 to 16 bits,
// or to all 24, and several times as fast.
#pragma once

#include <ATen/TensorOperators.h>
#include <ATen/ops/addmm.h>

#include <vector>

namespace mlcalib::cuda {

/// A matrix as a sum of bfloat16 matrices, each of what the ones before it leave.
using Terms = std::vector<at::Tensor>;

/// At most `count` terms, fewer where nothing is left: one of bfloat16, two of float16. Of float32
/// two terms leave 2⁻¹⁷ |x| or less, and three leave nothing. What is below the range of bfloat16
/// is lost: of |x| ≥ 2⁻¹¹⁶ nothing.
inline Terms terms_of(const at::Tensor& x, int count = 2) {
  if (x.scalar_type() == at::kBFloat16) return {x};
  const int64_t wanted = x.scalar_type() == at::kHalf ? 2 : count;
  at::Tensor left = x.to(at::kFloat);
  Terms terms = {left.to(at::kBFloat16)};
  while (std::ssize(terms) < wanted) {
    left = left - terms.back();
    terms.push_back(left.to(at::kBFloat16));
  }
  return terms;
}

/// Calls add(a, b) with the pairs of terms whose products add up to x y: within 2⁻¹⁶ of Σ |x| |y|
/// with two terms, within 2⁻²⁴ with three, of which the smallest pairs are left out. Of two terms
/// all pairs are taken: xᵀx then is the Gram of a matrix very near x, so that what cancels in
/// ⟨xᵀx, G⟩ leaves as little behind as x itself does.
template <class Add>
void for_each_product(const Terms& x, const Terms& y, const Add& add) {
  for (size_t i = 0; i < x.size(); ++i) {
    for (size_t j = 0; j < y.size() && i + j < 3; ++j) add(x[i], y[j]);
  }
}

/// sum += left right, in float32 sums; both of one dtype.
inline void add_product(at::Tensor sum, const at::Tensor& left, const at::Tensor& right) {
  if (left.scalar_type() == at::kFloat) {
    at::addmm_out(sum, sum, left, right);
  } else {
    at::addmm_out(sum, sum, left, right, at::kFloat);
  }
}

}  // namespace mlcalib::cuda
