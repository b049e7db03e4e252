// SPDX-License-Identifier: Apache-2.0
#include "emulation.hpp"

#include <setjmp.h>
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

/// What other threads look at.
struct Thread {
  bool left = false;
  int64_t barriers = 0;   // passed or waited at
  int64_t exchanges = 0;  // likewise
  // The last two: a lane is at most one exchange ahead of another of its mask.
  uint64_t given[2] = {};
};

// A place to go on from. setcontext asks the kernel for the signal mask each time, longjmp does
// not; the address sanitizer knows only the former.
class Context {
 public:
  /// Runs entry() on a stack when it is gone to for the first time.
  void begin_at(void (*entry)(), char* stack) {
    getcontext(&start_);
    start_.uc_stack.ss_sp = stack;
    start_.uc_stack.ss_size = kStackBytes;
    makecontext(&start_, entry, 0);
  }

#ifdef __SANITIZE_ADDRESS__
  void leave_for(Context& other) { swapcontext(&start_, &other.start_); }

 private:
#else
  void leave_for(Context& other) {
    begun_ = true;
    if (_setjmp(here_) != 0) return;
    if (other.begun_) _longjmp(other.here_, 1);
    setcontext(&other.start_);
  }

 private:
  jmp_buf here_{};
  bool begun_ = false;
#endif
  ucontext_t start_{};
};

/// Runs the threads of one block after another, all with the same number.
struct Fiber {
  Context context;
  std::unique_ptr<char[]> stack = std::make_unique_for_overwrite<char[]>(kStackBytes);
};

std::vector<Thread> block;
std::vector<std::unique_ptr<Fiber>> fibers;
std::vector<float> shared;
Context scheduler;
const std::function<void()>* body = nullptr;
bool moved = false;  // since the scheduler last went round

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "emulated block %u, thread %u: %s\n", block_index.x, thread_index.x, what);
  std::abort();
}

Thread& current() { return block[thread_index.x]; }

void let_others_run() { fibers[thread_index.x]->context.leave_for(scheduler); }

// Lets other threads run until `ready`.
template <class Ready>
void wait(const Ready& ready) {
  while (!ready()) let_others_run();
  moved = true;
}

void run_threads() {
  for (;;) {
    (*body)();
    current().left = true;
    moved = true;
    let_others_run();
  }
}

void run_block(int threads) {
  block.assign(static_cast<size_t>(threads), {});
  while (fibers.size() < block.size()) {
    fibers.push_back(std::make_unique<Fiber>());
    fibers.back()->context.begin_at(&run_threads, fibers.back()->stack.get());
  }
  for (bool alive = true; alive;) {
    alive = moved = false;
    for (unsigned i = 0; i < block.size(); ++i) {
      if (block[i].left) continue;
      alive = true;
      thread_index.x = i;
      scheduler.leave_for(fibers[i]->context);
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
