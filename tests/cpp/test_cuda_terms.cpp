// SPDX-License-Identifier: Apache-2.0
// Products of bfloat16 terms: on tensor cores they are exact and summed in float32, so that the
// CPU's products of the terms, widened, show what they are off by.
#include <ATen/TensorOperators.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>

#include <mlcalib/gptq.hpp>

#include "cuda/terms.hpp"
#include "reference.hpp"

namespace mlcalib::cuda {
namespace {

using reference::random_gram;
using reference::random_weight;
using reference::same_bits;

constexpr double kEach = 0x1p-17, kProduct = 0x1p-16, kExactProduct = 0x1p-24;

// From 2⁻⁴⁰ to 2⁴⁰, and of either sign.
at::Tensor of_all_sizes(int64_t rows, int64_t columns, uint32_t seed) {
  return random_weight(rows, columns, seed) *
         (random_weight(rows, columns, seed + 1) * 10).clamp(-40, 40).exp2();
}

at::Tensor sum_of(const Terms& terms) {
  at::Tensor sum = at::zeros(terms[0].sizes(), at::kDouble);
  for (const at::Tensor& term : terms) sum += term.to(at::kDouble);
  return sum;
}

// xᵀ y of terms in float64: what is off is the terms' alone.
at::Tensor product(const Terms& x, const Terms& y) {
  at::Tensor sum = at::zeros({x[0].size(1), y[0].size(1)}, at::kDouble);
  for_each_product(x, y, [&](const at::Tensor& a, const at::Tensor& b) {
    ASSERT_EQ(a.scalar_type(), at::kBFloat16);
    ASSERT_EQ(b.scalar_type(), at::kBFloat16);
    sum += at::mm(a.to(at::kDouble).t(), b.to(at::kDouble));
  });
  return sum;
}

TEST(CudaTerms, AddUpToTheirMatrix) {
  const at::Tensor x = of_all_sizes(300, 200, 1);
  const at::Tensor off = (sum_of(terms_of(x)) - x.to(at::kDouble)).abs();
  EXPECT_TRUE((off <= kEach * x.to(at::kDouble).abs()).all().item<bool>());
  EXPECT_GT(off.max().item<double>(), 0);
  EXPECT_TRUE(at::equal(sum_of(terms_of(x, 3)), x.to(at::kDouble)));
  const at::Tensor half = random_weight(300, 200, 2).to(at::kHalf);
  EXPECT_TRUE(at::equal(sum_of(terms_of(half)), half.to(at::kDouble)));
  const at::Tensor brain = x.to(at::kBFloat16);
  for (const int count : {2, 3}) {
    EXPECT_EQ(terms_of(half, count).size(), 2);
    ASSERT_EQ(terms_of(brain, count).size(), 1);
    EXPECT_TRUE(same_bits(terms_of(brain, count)[0], brain));
  }
}

TEST(CudaTerms, ProductsAreOffByLittle) {
  const at::Tensor x = of_all_sizes(64, 90, 1), y = of_all_sizes(64, 70, 3);
  const at::Tensor wide = x.to(at::kDouble), other = y.to(at::kDouble);
  const at::Tensor size = at::mm(wide.abs().t(), other.abs());
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
    const at::Tensor right = y.to(type);
    const at::Tensor wanted = at::mm(wide.t(), right.to(at::kDouble));
    for (const auto& [count, bound] : {std::pair(2, kProduct), std::pair(3, kExactProduct)}) {
      const at::Tensor off = (product(terms_of(x, count), terms_of(right, count)) - wanted).abs();
      EXPECT_TRUE((off <= bound * size).all().item<bool>()) << type << ", terms: " << count;
    }
  }
}

// A deviation as two bfloat16 terms of the difference, against float64.
TEST(CudaTerms, ADeviationIsTheCrossGramLessTheGram) {
  for (const at::ScalarType type : {at::kBFloat16, at::kHalf}) {
    const at::Tensor x = random_weight(500, 80, 1).to(type);
    const at::Tensor reference = (random_weight(500, 80, 1) * 1.01 + 0.02).to(type);
    const at::Tensor wide = x.to(at::kDouble);
    const at::Tensor change = reference.to(at::kDouble) - wide;
    const at::Tensor found =
        product(terms_of(reference.to(at::kFloat) - x.to(at::kFloat)), terms_of(x));
    const at::Tensor off = (found - at::mm(change.t(), wide)).abs();
    const at::Tensor size = at::mm(change.square().sum(0).sqrt().unsqueeze(1),
                                   wide.square().sum(0).sqrt().unsqueeze(0));
    EXPECT_LE((off / size).max().item<double>(), 2e-6) << type;
  }
}

// Losses cancel: GPTQ's errors are small together, not one by one. Without the products of low
// terms the second loss would be off by 3e-4.
TEST(CudaTerms, LossesOfASolveAreThoseOfFullProducts) {
  for (const double spread : {0.0, 30.0}) {
    const at::Tensor x = random_weight(400, 96, 1) + spread * random_weight(400, 1, 2);
    const at::Tensor gram = at::mm(x.t(), x), weight = random_weight(64, 96, 3);
    const at::Tensor change = weight - gptq(weight, gram).dequantize();
    const at::Tensor wide = change.to(at::kDouble), sums = gram.to(at::kDouble);
    const auto wanted = (at::mm(wide, sums) * wide).sum().item<double>();
    const auto found = (product(terms_of(change), terms_of(change)) * sums).sum().item<double>();
    EXPECT_NEAR(found, wanted, 2e-5 * wanted) << "spread " << spread;
  }
}

}  // namespace
}  // namespace mlcalib::cuda
