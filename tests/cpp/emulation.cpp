// SPDX-License-Identifier: Apache-2.0
#include "emulation.hpp"

#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <limits>
#include <memory>
#include <vector>

namespace mlcalib::cuda::emulation {

Index thread_index{}, block_index{}, grid_size{};

namespace {

constexpr size_t kStackBytes = 64 << 10;

struct Thread {
  ucontext_t context{};
  std::unique_ptr<char[]> stack = std::make_unique_for_overwrite<char[]>(kStackBytes);
  bool left = false;
  int64_t barriers = 0;   // passed or waited at
  int64_t exchanges = 0;  // likewise
  // The last two: a lane is at most one exchange ahead of another of its mask.
  uint64_t given[2] = {};
};

std::vector<Thread> block;
std::vector<float> shared;
ucontext_t scheduler;
const std::function<void()>* body = nullptr;
bool moved = false;  // since the scheduler last went round

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "emulated block %u, thread %u: %s\n", block_index.x, thread_index.x, what);
  std::abort();
}

Thread& current() { return block[thread_index.x]; }

// Lets other threads run until `ready`.
template <class Ready>
void wait(const Ready& ready) {
  const unsigned own = thread_index.x;
  while (!ready()) swapcontext(&block[own].context, &scheduler);
  moved = true;
}

void enter() {
  (*body)();
  current().left = true;
  moved = true;
}

void run_block(int threads) {
  block = std::vector<Thread>(static_cast<size_t>(threads));
  for (Thread& each : block) {
    getcontext(&each.context);
    each.context.uc_stack.ss_sp = each.stack.get();
    each.context.uc_stack.ss_size = kStackBytes;
    each.context.uc_link = &scheduler;
    makecontext(&each.context, &enter, 0);
  }
  for (bool alive = true; alive;) {
    alive = moved = false;
    for (unsigned i = 0; i < block.size(); ++i) {
      if (block[i].left) continue;
      alive = true;
      thread_index.x = i;
      swapcontext(&scheduler, &block[i].context);
    }
    if (alive && !moved) fail("all threads wait: a GPU would hang");
  }
}

}  // namespace

float* shared_memory() { return shared.data(); }

void synchronise() {
  const int64_t wanted = ++current().barriers;
  wait([wanted] {
    for (const Thread& each : block) {
      if (!each.left && each.barriers < wanted) return false;
    }
    return true;
  });
}

uint64_t exchange(unsigned mask, uint64_t value, unsigned from) {
  const unsigned warp = thread_index.x / 32 * 32;
  if ((mask >> thread_index.x % 32 & 1) == 0) fail("shuffles, but is not in its own mask");
  if (from >= 32 || (mask >> from & 1) == 0) fail("asks a lane that is not in the mask");
  const int64_t wanted = ++current().exchanges;
  current().given[wanted % 2] = value;
  wait([mask, warp, wanted] {
    for (unsigned lane = 0; lane < 32; ++lane) {
      if ((mask >> lane & 1) == 0) continue;
      if (warp + lane >= block.size()) fail("shuffles with a lane beyond the block");
      if (block[warp + lane].exchanges >= wanted) continue;
      if (block[warp + lane].left) fail("shuffles with a lane that has left");
      return false;
    }
    return true;
  });
  return block[warp + from].given[wanted % 2];
}

void run(int64_t blocks, int threads, int64_t shared_bytes, const std::function<void()>& kernel) {
  body = &kernel;
  grid_size.x = static_cast<unsigned>(blocks);
  for (int64_t i = 0; i < blocks; ++i) {
    block_index.x = static_cast<unsigned>(i);
    shared.assign(static_cast<size_t>(shared_bytes) / sizeof(float),
                  std::numeric_limits<float>::quiet_NaN());
    run_block(threads);
  }
}

}  // namespace mlcalib::cuda::emulation
