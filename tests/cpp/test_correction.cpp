// SPDX-License-Identifier: Apache-2.0
#include <ATen/TensorOperators.h>
#include <ATen/ops/zeros.h>

#include <Eigen/LU>
#include <memory>
#include <mlcalib/correction.hpp>
#include <mlcalib/statistic.hpp>

#include "reference.hpp"

namespace mlcalib {
namespace {

using reference::expect_error;
using reference::gram;
using reference::Matrix;
using reference::to_matrix;

struct Pair {
  at::Tensor x, other;  // of the quantized and of the float model
};

Pair pair_of(int64_t tokens, int64_t channels) {
  const Matrix other = reference::activations(tokens, channels, 1);
  const Matrix noise = reference::activations(tokens, channels, 2);
  return {reference::to_tensor(other + 0.2 * noise), reference::to_tensor(other)};
}

at::Tensor state_of(const char* name, const Pair& pair) {
  const std::unique_ptr<Statistic> statistic = make_statistic(name, pair.x.size(1));
  statistic->update(pair.x, pair.other);
  return statistic->state().at(name);
}

TEST(Corrected, IsItsDefinition) {
  const Pair pair = pair_of(500, 70);
  const at::Tensor first = reference::random_weight(3, 70, 3);
  const at::Tensor second = reference::random_weight(6, 70, 4);
  const CorrectionOptions options{.strength = 0.7, .ridge = 0.1};
  const std::vector<at::Tensor> found =
      corrected({first, second}, state_of("gram", pair), state_of("deviation", pair), options);
  ASSERT_EQ(found.size(), 2U);

  const Matrix x = to_matrix(pair.x), difference = to_matrix(pair.other) - x;
  Matrix damped = gram(x);
  damped.diagonal().array() += options.ridge * damped.diagonal().mean();
  const Matrix change = difference.transpose() * x * damped.inverse();
  for (const auto& [weight, target] : {std::pair{first, found[0]}, std::pair{second, found[1]}}) {
    const Matrix own = to_matrix(weight);
    const Matrix wanted = own + options.strength * own * change;
    EXPECT_LE((to_matrix(target) - wanted).cwiseAbs().maxCoeff(),
              1e-3 * wanted.cwiseAbs().maxCoeff());
  }
}

TEST(Corrected, NamesWhatIsWrong) {
  const at::Tensor weight = reference::random_weight(3, 8, 5), gram = reference::random_gram(8, 6);
  const at::Tensor none = at::zeros({8, 8});
  const auto with = [&](const at::Tensor& deviation, CorrectionOptions options) {
    return [&weight, &gram, deviation, options] { corrected(weight, gram, deviation, options); };
  };
  expect_error<c10::ValueError>(with(at::zeros({8, 7}), {}), {"deviation has shape [8, 7]"});
  expect_error<c10::TypeError>(with(none.to(at::kDouble), {}), {"deviation is Double"});
  expect_error<c10::ValueError>(with(none, {.strength = 2}), {"strength is 2"});
  expect_error<c10::ValueError>(with(none, {.ridge = 0}), {"ridge is 0"});
}

TEST(Deviation, NeedsTheOtherModel) {
  const Pair pair = pair_of(20, 8);
  const std::unique_ptr<Statistic> statistic = make_statistic("deviation", 8);
  EXPECT_TRUE(statistic->compares());
  expect_error<c10::ValueError>([&] { statistic->update(pair.x); }, {"pass reference="});
  expect_error<c10::ValueError>([&] { statistic->update(pair.x, pair.other.narrow(0, 0, 3)); },
                                {"reference has shape [3, 8]", "[20, 8]"});
  EXPECT_EQ(statistic->tokens(), 0);
}

}  // namespace
}  // namespace mlcalib
