// SPDX-License-Identifier: Apache-2.0
#include "gram_kernels.hpp"

#include <algorithm>

#include "amx_emulation.hpp"
#include "cpu/activations.hpp"

namespace mlcalib::cpu::gram_kernels {

std::vector<NamedKernels> all() {
  std::vector<NamedKernels> found;
  for (const KernelTable* table : available_kernels()) found.push_back({table->name, table->gram});
  found.push_back({"amx_emulated", &amx_emulated::gram_kernels});
  return found;
}

std::vector<NamedKernels> amx() {
  std::vector<NamedKernels> found = all();
  std::erase_if(found, [](const NamedKernels& each) { return !each.name.starts_with("amx"); });
  return found;
}

Gram run(const GramKernels& kernels, const at::Tensor& x, float start, int64_t at_once) {
  const int64_t channels = x.size(1);
  const int64_t groups = (channels + kernels.columns - 1) / kernels.columns;
  const Activations given = activations(x, 0, x.size(0));
  const int64_t steps = kernels.steps(given.element, given.tokens);
  std::vector<float> packed(steps * groups * kernels.columns);
  const int64_t strips = groups * (kernels.columns / kernels.strip);
  for (int64_t strip = 0; strip < strips; ++strip) {
    kernels.pack(given, strip, strip + 1, packed.data());
  }
  const int64_t rows = (channels + kGramTile - 1) / kGramTile;
  Gram sums(gram_tile(0, rows), start);
  for (int64_t group = 0; group < groups; ++group) {
    const int64_t tiles = (group + 1) * (kernels.columns / kernels.rows);
    for (int64_t first = 0; first < tiles; first += at_once) {
      kernels.tiles(packed.data(), given.element, steps, channels, group, first,
                    std::min(first + at_once, tiles), sums.data());
    }
  }
  Gram gram(channels * channels);
  for (int64_t i = 0; i < channels; ++i) {
    for (int64_t j = i; j < channels; ++j) gram[i * channels + j] = sums[gram_index(i, j)];
  }
  return gram;
}

}  // namespace mlcalib::cpu::gram_kernels
