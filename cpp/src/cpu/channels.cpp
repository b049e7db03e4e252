// SPDX-License-Identifier: Apache-2.0
#include <ATen/Parallel.h>

#include <algorithm>

#include "../host_device.hpp"
#include "../stubs.hpp"
#include "activations.hpp"
#include "kernels/kernels.hpp"

namespace mlcalib {
namespace {

// Summed in fp32 before they are added to float64: few enough that rounding stays below 1e-5.
constexpr int64_t kTokens = 256;
// Strips of a task: consecutive ones read consecutive memory.
constexpr int64_t kStrips = 4;

// Calls update(tokens, first strip, last strip) until every token of every channel was seen.
template <class Update>
void for_each_piece(const at::Tensor& x, const Update& update) {
  const at::Tensor rows = x.stride(1) == 1 ? x : x.contiguous();
  const int64_t strip = cpu::kernels().channels->strip;
  at::parallel_for(0, divide_up(rows.size(1), strip), kStrips, [&](int64_t begin, int64_t end) {
    for (int64_t first = 0; first < rows.size(0); first += kTokens) {
      update(cpu::activations(rows, first, std::min(kTokens, rows.size(0) - first)), begin, end);
    }
  });
}

void moments_update_cpu(const at::Tensor& sum, const at::Tensor& absolute, const at::Tensor& square,
                        const at::Tensor& x) {
  for_each_piece(x, [&](const cpu::Activations& tokens, int64_t first, int64_t last) {
    cpu::kernels().channels->moments(tokens, first, last, sum.data_ptr<double>(),
                                     absolute.data_ptr<double>(), square.data_ptr<double>());
  });
}

void range_update_cpu(const at::Tensor& low, const at::Tensor& high, const at::Tensor& x) {
  for_each_piece(x, [&](const cpu::Activations& tokens, int64_t first, int64_t last) {
    cpu::kernels().channels->range(tokens, first, last, low.data_ptr<float>(),
                                   high.data_ptr<float>());
  });
}

void histogram_update_cpu(const at::Tensor& counts, const at::Tensor& unit, const at::Tensor& x) {
  for_each_piece(x, [&](const cpu::Activations& tokens, int64_t first, int64_t last) {
    cpu::kernels().channels->histogram(tokens, first, last, unit.const_data_ptr<float>(),
                                       counts.data_ptr<double>());
  });
}

const bool channels_installed = moments_update_stub.install(at::kCPU, &moments_update_cpu) &&
                                range_update_stub.install(at::kCPU, &range_update_cpu) &&
                                histogram_update_stub.install(at::kCPU, &histogram_update_cpu);

}  // namespace
}  // namespace mlcalib
