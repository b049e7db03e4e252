// SPDX-License-Identifier: Apache-2.0
// The Gram's products are cuBLAS's: tensor cores with float32 sums for bfloat16 and float16,
// float32 without TF32 else.
#include <ATen/Context.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>

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

void gram_update_cuda(const at::Tensor& gram, const at::Tensor& x) {
  const at::NoTF32Guard full_precision;
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

void mirror_cuda(const at::Tensor& gram) {
  cuda::on_device_of(gram, [&](cudaStream_t stream) {
    cuda::mirror(gram.data_ptr<float>(), gram.size(0), stream);
  });
}

double dot_cuda(const at::Tensor& a, const at::Tensor& b) {
  const at::Tensor sums = at::empty({cuda::dot_sums(a.numel())}, a.options().dtype(at::kDouble));
  cuda::on_device_of(a, [&](cudaStream_t stream) {
    cuda::dot(cuda::data(a), cuda::data(b), a.numel(), sums.data_ptr<double>(), stream);
  });
  return sums.sum().item<double>();
}

const bool installed = gram_update_stub.install(at::kCUDA, &gram_update_cuda) &&
                       mirror_stub.install(at::kCUDA, &mirror_cuda) &&
                       dot_stub.install(at::kCUDA, &dot_cuda);

}  // namespace
}  // namespace mlcalib
