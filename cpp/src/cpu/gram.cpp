// SPDX-License-Identifier: Apache-2.0
#include <ATen/Parallel.h>
#include <ATen/ops/addmm.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "../stubs.hpp"
#include "kernels/kernels.hpp"

namespace mlcalib {
namespace {

// Rows of the Gram per matrix product: the product starts at the diagonal, so that with k panels
// (1 + 1/k)/2 of the full product is computed. Narrower panels make slower products.
constexpr int64_t kPanel = 192;

void gram_update_cpu(const at::Tensor& gram, const at::Tensor& x) {
  const at::Tensor rows = x.to(at::kFloat);  // products of bf16 or fp16 are exact in fp32
  const int64_t channels = gram.size(0);
  for (int64_t first = 0; first < channels; first += kPanel) {
    const int64_t height = std::min(kPanel, channels - first);
    at::Tensor panel = gram.narrow(0, first, height).narrow(1, first, channels - first);
    at::addmm_out(panel, panel, rows.narrow(1, first, height).t(),
                  rows.narrow(1, first, channels - first));
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
