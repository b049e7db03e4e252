// SPDX-License-Identifier: Apache-2.0
// Long work asks between its pieces whether it is to end, and ends with what is thrown then.
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <mlcalib/awq.hpp>
#include <mlcalib/gptq.hpp>
#include <mlcalib/interrupt.hpp>
#include <mlcalib/rtn.hpp>
#include <stdexcept>
#include <string>

#include "reference.hpp"

namespace mlcalib {
namespace {

using reference::random_gram;
using reference::random_weight;

int checks = 0, free_checks = 0;

void count_down() {
  if (++checks > free_checks) throw std::runtime_error("enough");
}

// Runs with a check that throws when it is made for the (calls + 1)th time.
bool is_ended(const std::function<void()>& work, int calls) {
  checks = 0;
  free_checks = calls;
  set_interrupt_check(&count_down);
  bool ended = false;
  try {
    work();
  } catch (const std::runtime_error& error) {
    ended = std::string(error.what()) == "enough";
  }
  set_interrupt_check(nullptr);
  return ended;
}

TEST(Interrupt, EndsLongWorkWhereverItIs) {
  // More threads take more at once.
  const int threads = at::get_num_threads();
  at::set_num_threads(1);
  const at::Tensor weight = random_weight(200, 256, 1), gram = random_gram(256, 2);
  const at::Tensor output = random_gram(200, 3), mean = at::ones({256});
  GptqOptions natural, narrow;
  natural.order = Order::kNatural;
  natural.static_grid = false;
  natural.grid.group_size = narrow.grid.group_size = 32;
  const std::map<std::string, std::function<void()>> works = {
      {"gptq", [&] { gptq(weight, gram, narrow); }},
      {"running grids", [&] { gptq(weight, gram, natural); }},
      {"two-sided",
       [&] { gptq(at::TensorList(&weight, 1), gram, at::TensorList(&output, 1), narrow); }},
      {"awq",
       [&] {
         awq_scale({{{weight}, gram}}, mean);
       }},
      {"clip", [&] { awq_clip(weight, gram, narrow.grid); }},
  };
  for (const auto& [name, work] : works) {
    EXPECT_FALSE(is_ended(work, 1 << 30)) << name;
    const int pieces = checks;
    EXPECT_GE(pieces, 8) << name;
    for (const int calls : {0, 1, pieces / 2, pieces - 1}) {
      EXPECT_TRUE(is_ended(work, calls)) << name << " after " << calls;
      EXPECT_EQ(checks, calls + 1) << name;
    }
    EXPECT_FALSE(is_ended(work, pieces)) << name;
  }
  at::set_num_threads(threads);
}

}  // namespace
}  // namespace mlcalib
