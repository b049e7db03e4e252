// SPDX-License-Identifier: Apache-2.0
#include "interrupt.hpp"

#include <atomic>

namespace mlcalib {
namespace {

std::atomic<InterruptCheck> current{nullptr};

}  // namespace

void set_interrupt_check(InterruptCheck check) noexcept { current.store(check); }

void check_interrupt() {
  if (const InterruptCheck check = current.load(std::memory_order_relaxed)) check();
}

}  // namespace mlcalib
