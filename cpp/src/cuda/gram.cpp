// SPDX-License-Identifier: Apache-2.0
// The Gram's products are cuBLAS's: tensor cores with float32 sums for bfloat16 and float16,
// float32 without TF32 else.
#include <ATen/TensorOperators.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

#include "../stubs.hpp"
#include "device.hpp"

namespace mlcalib {
namespace {

// Tokens summed in one product: few enough that the tensor cores' sums, which truncate, do not
// drift.
constexpr int64_t kTokens = 4096;

// Rows of one product. Each covers the columns from its first row on: the part below the diagonal
// that is computed too is a share of kRows / channels, and a product is large enough to fill a GPU.
constexpr int64_t kRows = 1024;

// All of them: each kernel cuts for itself.
int64_t piece_tokens_cuda(const at::Tensor& x) { return x.size(0); }

at::Tensor gram_sums_cuda(int64_t channels, at::Device device) {
  return at::zeros({channels, channels}, at::TensorOptions(at::kFloat).device(device));
}

void gram_update_cuda(const at::Tensor& gram, const at::Tensor& x) {
  const int64_t channels = gram.size(0);
  for (int64_t token = 0; token < x.size(0); token += kTokens) {
    const at::Tensor tokens = x.narrow(0, token, std::min(kTokens, x.size(0) - token));
    for (int64_t row = 0; row < channels; row += kRows) {
      const int64_t rows = std::min(kRows, channels - row), columns = channels - row;
      at::Tensor tile = gram.narrow(0, row, rows).narrow(1, row, columns);
      const at::Tensor left = tokens.narrow(1, row, rows).t();
      const at::Tensor right = tokens.narrow(1, row, columns);
      if (x.scalar_type() == at::kFloat) {
        at::addmm_out(tile, tile, left, right);
      } else {
        at::addmm_out(tile, tile, left, right, at::kFloat);
      }
    }
  }
}

// Contiguous: the triangles are told apart by where they lie.
at::Tensor gram_pack_cuda(const at::Tensor& gram) {
  return gram.clone(at::MemoryFormat::Contiguous);
}

at::Tensor gram_unpack_cuda(const at::Tensor& sums, int64_t channels) {
  at::Tensor gram = sums.clone();
  cuda::on_device_of(
      gram, [&](cudaStream_t stream) { cuda::mirror(gram.data_ptr<float>(), channels, stream); });
  return gram;
}

double dot_cuda(const at::Tensor& a, const at::Tensor& b) {
  const at::Tensor sums = at::empty({cuda::dot_sums(a.numel())}, a.options().dtype(at::kDouble));
  cuda::on_device_of(a, [&](cudaStream_t stream) {
    cuda::dot(cuda::data(a), cuda::data(b), a.numel(), sums.data_ptr<double>(), stream);
  });
  return sums.sum().item<double>();
}

double gram_dot_cuda(const at::Tensor& a, const at::Tensor& b, int64_t channels) {
  return dot_cuda(gram_unpack_cuda(a, channels), gram_unpack_cuda(b, channels));
}

const bool gram_installed = piece_tokens_stub.install(at::kCUDA, &piece_tokens_cuda) &&
                            gram_sums_stub.install(at::kCUDA, &gram_sums_cuda) &&
                            gram_update_stub.install(at::kCUDA, &gram_update_cuda) &&
                            gram_pack_stub.install(at::kCUDA, &gram_pack_cuda) &&
                            gram_unpack_stub.install(at::kCUDA, &gram_unpack_cuda) &&
                            gram_dot_stub.install(at::kCUDA, &gram_dot_cuda) &&
                            dot_stub.install(at::kCUDA, &dot_cuda);

}  // namespace
}  // namespace mlcalib
