// SPDX-License-Identifier: Apache-2.0
// How long work is ended from outside. Solves take minutes on large models, and a signal has to be
// answered before they are done.
#pragma once

#include <mlcalib/export.hpp>

namespace MLCALIB_API mlcalib {

/// What long functions call between pieces of their work, on the thread that called them. What it
/// throws ends the function, and its results are lost; nothing else is.
using InterruptCheck = void (*)();

/// Sets it for the process, as signals are the process's; nullptr, as at first, for none. It must
/// be quick: pieces take from microseconds to some tenths of a second.
void set_interrupt_check(InterruptCheck check) noexcept;

}  // namespace mlcalib
