// SPDX-License-Identifier: Apache-2.0
// The Gram's kernels driven by hand: what their tests share.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <ostream>
#include <string>
#include <vector>

#include "cpu/kernels/kernels.hpp"

namespace mlcalib::cpu::gram_kernels {

using Gram = std::vector<float>;

struct NamedKernels {
  std::string name;
  const GramKernels* kernels;
  friend std::ostream& operator<<(std::ostream& out, const NamedKernels& named) {
    return out << named.name;
  }
};

/// Those of every instruction set that this machine has, and AMX on emulated tiles.
std::vector<NamedKernels> all();

/// AMX on emulated tiles, and on the machine's where it has some.
std::vector<NamedKernels> amx();

/// The upper triangle of start + xᵀx, tiles at most `at_once` at a time; x is [tokens, channels].
Gram run(const GramKernels& kernels, const at::Tensor& x, float start, int64_t at_once);

}  // namespace mlcalib::cpu::gram_kernels
