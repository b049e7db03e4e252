// SPDX-License-Identifier: Apache-2.0
// Functions keep no state and may be called from several threads, also with the same arguments.
#pragma once

#include <mlcalib/export.hpp>
#include <mlcalib/linear.hpp>

namespace MLCALIB_API mlcalib {

/// Round to nearest on a fitted grid. `gram` [cols, cols] serves Range::kGram and the loss.
QuantizedLinear rtn(const at::Tensor& weight, const GridSpec& spec,
                    const std::optional<at::Tensor>& gram = std::nullopt);

}  // namespace mlcalib
