// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <mlcalib/interrupt.hpp>

namespace mlcalib {

/// Between pieces of long work, outside of parallel sections: throws where the work is to end.
void check_interrupt();

}  // namespace mlcalib
