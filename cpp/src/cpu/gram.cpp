// SPDX-License-Identifier: Apache-2.0
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "../stubs.hpp"
#include "activations.hpp"
#include "kernels/kernels.hpp"

namespace mlcalib {
namespace {

void add_tokens(const cpu::Activations& x, void* packed, float* gram) {
  const cpu::GramKernels& kernels = *cpu::kernels().gram;
  const int64_t groups = (x.channels + kernels.columns - 1) / kernels.columns;
  const int64_t strips = groups * (kernels.columns / kernels.strip);
  at::parallel_for(0, strips, 1,
                   [&](int64_t begin, int64_t end) { kernels.pack(x, begin, end, packed); });

  // Row tiles on or above the diagonal, counted over the groups, in equal shares.
  const int64_t height = kernels.columns / kernels.rows;
  const int64_t steps = kernels.steps(x.element, x.tokens);
  at::parallel_for(0, height * groups * (groups + 1) / 2, 1, [&](int64_t begin, int64_t end) {
    int64_t start = 0;  // of the group, in the count
    for (int64_t group = 0; start < end; ++group) {
      const int64_t tiles = height * (group + 1);
      const int64_t first = std::max<int64_t>(begin - start, 0);
      const int64_t last = std::min(end - start, tiles);
      if (first < last) {
        kernels.tiles(packed, x.element, steps, x.channels, group, first, last, gram);
      }
      start += tiles;
    }
  });
}

void gram_update_cpu(const at::Tensor& gram, const at::Tensor& x) {
  const at::Tensor rows = x.stride(1) == 1 ? x : x.contiguous();
  const cpu::GramKernels& kernels = *cpu::kernels().gram;
  const int64_t channels = gram.size(0), tokens = rows.size(0);
  const int64_t groups = (channels + kernels.columns - 1) / kernels.columns;
  const cpu::Element element = cpu::element_of(rows);
  const int64_t at_once = std::min(tokens, kernels.tokens(element));
  const at::Tensor packed =
      at::empty({kernels.steps(element, at_once), groups * kernels.columns}, gram.options());
  for (int64_t first = 0; first < tokens; first += at_once) {
    add_tokens(cpu::activations(rows, first, std::min(at_once, tokens - first)), packed.data_ptr(),
               gram.data_ptr<float>());
  }
}

void mirror_cpu(const at::Tensor& gram) {
  const int64_t channels = gram.size(0);
  float* data = gram.data_ptr<float>();
  constexpr int64_t kTile = 64;  // both sides of a tile pair stay in the first-level cache
  at::parallel_for(0, (channels + kTile - 1) / kTile, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i0 = begin * kTile; i0 < std::min(end * kTile, channels); i0 += kTile) {
      for (int64_t j0 = i0; j0 < channels; j0 += kTile) {
        for (int64_t i = i0; i < std::min(i0 + kTile, channels); ++i) {
          for (int64_t j = std::max(i + 1, j0); j < std::min(j0 + kTile, channels); ++j) {
            data[j * channels + i] = data[i * channels + j];
          }
        }
      }
    }
  });
}

double dot_cpu(const at::Tensor& a, const at::Tensor& b) {
  const int64_t rows = a.size(0), columns = a.size(1);
  const float* left = a.const_data_ptr<float>();
  const float* right = b.const_data_ptr<float>();
  std::vector<double> sums(rows);
  at::parallel_for(0, rows, 64, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      sums[r] = cpu::kernels().dot(left + r * columns, right + r * columns, columns);
    }
  });
  return std::accumulate(sums.begin(), sums.end(), 0.0);
}

const bool installed = gram_update_stub.install(at::kCPU, &gram_update_cpu) &&
                       mirror_stub.install(at::kCPU, &mirror_cpu) &&
                       dot_stub.install(at::kCPU, &dot_cpu);

}  // namespace
}  // namespace mlcalib
