// SPDX-License-Identifier: Apache-2.0
// No product of a front may be made in TF32. That is a GPU's, but torch asks the same guard, which
// can be watched on the CPU: every product that a front has torch make must be made under it.
#include <ATen/Context.h>
#include <ATen/TensorOperators.h>
#include <ATen/record_function.h>
#include <gtest/gtest.h>

#include <mlcalib/awq.hpp>
#include <mlcalib/correction.hpp>
#include <mlcalib/gptq.hpp>
#include <mlcalib/rtn.hpp>
#include <set>
#include <string>

#include "reference.hpp"

namespace mlcalib {
namespace {

using reference::random_gram;
using reference::random_weight;

thread_local std::set<std::string>*guarded = nullptr, *bare = nullptr;

std::unique_ptr<at::ObserverContext> watch(const at::RecordFunction& function) {
  const std::string name = function.name();
  for (const char* product : {"mm", "addmm", "linalg_", "cholesky_solve", "baddbmm"}) {
    if (name.find(product) == std::string::npos) continue;
    (at::NoTF32Guard::should_disable_tf32() ? guarded : bare)->insert(name);
  }
  return nullptr;
}

class FullPrecisionTest : public testing::Test {
 protected:
  void SetUp() override {
    guarded = &guarded_;
    bare = &bare_;
    handle_ = at::addThreadLocalCallback(
        at::RecordFunctionCallback(&watch).scopes({at::RecordScope::FUNCTION}));
  }
  void TearDown() override {
    at::removeCallback(handle_);
    EXPECT_FALSE(at::NoTF32Guard::should_disable_tf32());
    EXPECT_TRUE(bare_.empty()) << *bare_.begin();
    EXPECT_FALSE(guarded_.empty()) << "no product was seen";
  }

  const at::Tensor weight_ = random_weight(24, 64, 1), gram_ = random_gram(64, 2);
  std::set<std::string> guarded_, bare_;
  at::CallbackHandle handle_ = 0;
};

TEST_F(FullPrecisionTest, Deviation) {
  make_statistic("deviation", 64)->update(weight_, weight_ * 2);
}

TEST_F(FullPrecisionTest, Correction) { corrected({weight_}, gram_, gram_ / 8); }

TEST_F(FullPrecisionTest, RunningGridsAndRefit) {
  gptq(weight_, gram_,
       {.grid = {.group_size = 16}, .order = Order::kNatural, .refit = 2, .static_grid = false});
}

TEST_F(FullPrecisionTest, ScaleSearch) {
  awq_scale({{.weights = {weight_}, .gram = gram_}}, gram_.diagonal(),
            {.grid = {.group_size = 16}, .points = 4, .sketch = 8});
}

}  // namespace
}  // namespace mlcalib
