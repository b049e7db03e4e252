// SPDX-License-Identifier: Apache-2.0
// NaN and Inf on a device that nobody waits for, which the CPU plays here: an update counts them,
// and who reads the statistic finds them. What would wait for a GPU is watched for.
#include <ATen/TensorOperators.h>
#include <ATen/ops/isfinite.h>
#include <ATen/record_function.h>

#include <limits>
#include <memory>
#include <mlcalib/linear.hpp>
#include <mlcalib/statistic.hpp>
#include <string>
#include <vector>

#include "reference.hpp"
#include "stubs.hpp"

namespace mlcalib {
namespace {

using reference::expect_error;
using reference::random_weight;
using reference::same_bits;

thread_local int waits = 0;

std::unique_ptr<at::ObserverContext> watch(const at::RecordFunction& function) {
  const std::string name = function.name();
  for (const char* each : {"_local_scalar_dense", "nonzero", "equal", "is_nonzero"}) {
    if (name == std::string("aten::") + each) ++waits;
  }
  return nullptr;
}

void count(const at::Tensor& found, const at::Tensor& x) {
  ASSERT_EQ(x.dim(), 2);
  found.add_(at::isfinite(x).logical_not().sum());
}

class Nonfinite : public testing::Test {
 protected:
  void SetUp() override {
    count_nonfinite_stub.install(at::kCPU, &count);
    handle_ = at::addThreadLocalCallback(
        at::RecordFunctionCallback(&watch).scopes({at::RecordScope::FUNCTION}));
    waits = 0;
  }
  void TearDown() override {
    at::removeCallback(handle_);
    count_nonfinite_stub.install(at::kCPU, nullptr);
  }

  static at::Tensor damaged() {
    at::Tensor x = random_weight(6, 40, 3);
    x[2][7] = std::numeric_limits<float>::infinity();
    x[4][1] = std::numeric_limits<float>::quiet_NaN();
    return x;
  }

  static void expect_found(const std::function<void()>& read, const char* count = "held 2 NaN") {
    expect_error<c10::ValueError>(read, {"the activations given to the statistic", count});
  }

  const at::Tensor good_ = random_weight(24, 40, 1);
  at::CallbackHandle handle_ = 0;
};

TEST_F(Nonfinite, NoUpdateWaitsAndOneReadIsEnough) {
  for (const std::string& name : statistic_names()) {
    waits = 0;
    const std::unique_ptr<Statistic> statistic = make_statistic(name, 40);
    for (int i = 0; i < 5; ++i) statistic->update(good_, good_ * 2);
    EXPECT_EQ(waits, 0) << name;
    statistic->check_finite();
    EXPECT_EQ(waits, 1) << name;
    statistic->view();
    statistic->state();
    EXPECT_EQ(waits, 1) << name << ": was looked at and had no more tokens";
    statistic->update(good_, good_ * 2);
    EXPECT_EQ(waits, 1) << name;
    statistic->view();
    EXPECT_EQ(waits, 2) << name;
  }
}

TEST_F(Nonfinite, WhoReadsFindsThem) {
  for (const std::string& name : statistic_names()) {
    const std::unique_ptr<Statistic> statistic = make_statistic(name, 40);
    statistic->update(good_, good_ * 2);
    statistic->update(damaged().view({2, 3, 40}), good_.narrow(0, 0, 6).view({2, 3, 40}));
    EXPECT_EQ(statistic->tokens(), 30);
    expect_found([&] { statistic->check_finite(); });
    expect_found([&] { statistic->view(); });
    statistic->update(good_, good_);
    expect_found([&] { statistic->state(); });
    const std::unique_ptr<Statistic> whole = make_statistic(name, 40);
    whole->update(good_, good_);
    statistic->load(whole->state());
    EXPECT_NO_THROW(statistic->view()) << "a new state has forgotten them";
  }
}

TEST_F(Nonfinite, AReferenceIsLookedAtToo) {
  const std::unique_ptr<Statistic> statistic = make_statistic("deviation", 40);
  statistic->update(good_.narrow(0, 0, 6), damaged());
  expect_found([&] { statistic->view(); });
}

TEST_F(Nonfinite, AMergeCarriesThem) {
  const std::unique_ptr<Statistic> one = make_statistic("moments", 40);
  const std::unique_ptr<Statistic> other = make_statistic("moments", 40);
  one->update(good_);
  other->update(damaged());
  waits = 0;
  one->merge(*other, 0.5);
  one->merge(*one);
  EXPECT_EQ(waits, 0);
  expect_found([&] { one->view(); }, "held 4 NaN");
}

TEST_F(Nonfinite, LossesFindThem) {
  const std::unique_ptr<Statistic> gram = make_statistic("gram", 40);
  gram->update(damaged());
  expect_found([&] { losses(random_weight(3, 40, 4), {gram.get()}); });
}

// Statistics of one update share what was counted, but not what is added to it later.
TEST_F(Nonfinite, EachStatisticCountsForItself) {
  const std::unique_ptr<Statistic> one = make_statistic("range", 40);
  const std::unique_ptr<Statistic> other = make_statistic("gram", 40);
  update({one.get(), other.get()}, good_);
  one->update(damaged());
  expect_found([&] { one->view(); });
  EXPECT_NO_THROW(other->view());
}

TEST_F(Nonfinite, SumsAreThoseOfAnUpdateThatLooks) {
  const std::unique_ptr<Statistic> later = make_statistic("gram", 40);
  later->update(good_);
  count_nonfinite_stub.install(at::kCPU, nullptr);
  const std::unique_ptr<Statistic> at_once = make_statistic("gram", 40);
  at_once->update(good_);
  EXPECT_TRUE(same_bits(later->view().at("gram"), at_once->view().at("gram")));
  expect_error<c10::ValueError>([&] { at_once->update(damaged()); }, {"x holds 2 NaN or Inf"});
}

}  // namespace
}  // namespace mlcalib
