// SPDX-License-Identifier: Apache-2.0
// Grams and what is measured with them. Products are cuBLAS's: tensor cores with float32 sums for
// bfloat16 and float16, float32 without TF32 for a Gram of float32.
#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

#include "../stubs.hpp"
#include "device.hpp"
#include "terms.hpp"

namespace mlcalib {
namespace {

// Tokens summed in one product (as in statistics/joined.py): few enough that the tensor cores'
// sums, which truncate, do not drift.
constexpr int64_t kTokens = 4096;

// All of them: each kernel cuts for itself.
int64_t piece_tokens_cuda(const at::Tensor& x) { return x.size(0); }

at::Tensor gram_sums_cuda(int64_t channels, at::Device device) {
  return at::zeros({cuda::packed_size(channels)}, at::TensorOptions(at::kFloat).device(device));
}

// Calls run(row, block) with each block row of packed sums: its first row, and its sums [rows,
// channels − row].
template <class Run>
void for_each_block_row(const at::Tensor& sums, int64_t channels, const Run& run) {
  for (int64_t row = 0; row < channels; row += cuda::kBlockRows) {
    const int64_t rows = std::min(cuda::kBlockRows, channels - row), columns = channels - row;
    run(row, sums.narrow(0, cuda::block_row(row, channels), rows * columns).view({rows, columns}));
  }
}

// Calls run(first, count) with the tokens that one product sums.
template <class Run>
void for_each_piece(int64_t tokens, const Run& run) {
  for (int64_t token = 0; token < tokens; token += kTokens) {
    run(token, std::min(kTokens, tokens - token));
  }
}

// Packed sums += leftᵀ right, which is symmetric or becomes so.
void add_triangle(const at::Tensor& sums, const at::Tensor& left, const at::Tensor& right) {
  for_each_block_row(sums, left.size(1), [&](int64_t row, const at::Tensor& block) {
    cuda::add_product(block, left.narrow(1, row, block.size(0)).t(),
                      right.narrow(1, row, block.size(1)));
  });
}

void gram_update_cuda(const at::Tensor& sums, const at::Tensor& x) {
  for_each_piece(x.size(0), [&](int64_t first, int64_t count) {
    const at::Tensor tokens = x.narrow(0, first, count);
    add_triangle(sums, tokens, tokens);
  });
}

void deviation_update_cuda(const at::Tensor& deviation, const at::Tensor& x,
                           const at::Tensor& reference) {
  for_each_piece(x.size(0), [&](int64_t first, int64_t count) {
    const at::Tensor tokens = x.narrow(0, first, count);
    // The difference before the product: both Grams are far larger than what they differ by.
    const at::Tensor change =
        reference.narrow(0, first, count).to(at::kFloat) - tokens.to(at::kFloat);
    if (x.scalar_type() == at::kFloat) {
      cuda::add_product(deviation, change.t(), tokens);
      return;
    }
    cuda::for_each_product(cuda::terms_of(change), cuda::terms_of(tokens),
                           [&](const at::Tensor& left, const at::Tensor& right) {
                             cuda::add_product(deviation, left.t(), right);
                           });
  });
}

at::Tensor gram_pack_cuda(const at::Tensor& gram) {
  const int64_t channels = gram.size(0);
  const at::Tensor sums = at::empty({cuda::packed_size(channels)}, gram.options());
  for_each_block_row(sums, channels, [&](int64_t row, const at::Tensor& block) {
    block.copy_(gram.narrow(0, row, block.size(0)).narrow(1, row, block.size(1)));
  });
  return sums;
}

at::Tensor gram_unpack_cuda(const at::Tensor& sums, int64_t channels) {
  at::Tensor gram = at::empty({channels, channels}, sums.options());
  cuda::on_device_of(gram, [&](cudaStream_t stream) {
    cuda::unpack_gram(cuda::data(sums), channels, cuda::pointer<float>(gram), stream);
  });
  return gram;
}

double dot_cuda(const at::Tensor& a, const at::Tensor& b) {
  const at::Tensor sums = at::empty({cuda::dot_sums(a.numel())}, a.options().dtype(at::kDouble));
  cuda::on_device_of(a, [&](cudaStream_t stream) {
    cuda::dot(cuda::data(a), cuda::data(b), a.numel(), cuda::pointer<double>(sums), stream);
  });
  return sums.sum().item<double>();
}

// DᵀD of a change [rows, channels], packed.
at::Tensor squared(const at::Tensor& change) {
  const at::Tensor square = gram_sums_cuda(change.size(1), change.device());
  for_each_piece(change.size(0), [&](int64_t first, int64_t count) {
    const cuda::Terms terms = cuda::terms_of(change.narrow(0, first, count));
    cuda::for_each_product(terms, terms, [&](const at::Tensor& left, const at::Tensor& right) {
      add_triangle(square, left, right);
    });
  });
  return square;
}

// The device is waited for once, for the losses of all Grams.
std::vector<double> gram_losses_cuda(const at::Tensor& change,
                                     const std::vector<at::Tensor>& grams) {
  const at::Tensor square = squared(change);
  const int64_t channels = change.size(1), parts = cuda::triangle_dot_sums(channels);
  const auto count = static_cast<int64_t>(grams.size());
  const at::Tensor sums = at::empty({count, parts}, square.options().dtype(at::kDouble));
  for (int64_t first = 0; first < count; first += cuda::TriangleDots::kGrams) {
    cuda::TriangleDots dots{};
    dots.square = cuda::data(square);
    dots.count = static_cast<int>(std::min<int64_t>(count - first, cuda::TriangleDots::kGrams));
    for (int i = 0; i < dots.count; ++i) dots.grams[i] = cuda::data(grams[first + i]);
    dots.channels = channels;
    dots.sums = cuda::pointer<double>(sums) + first * parts;
    cuda::on_device_of(square, [&](cudaStream_t stream) { cuda::triangle_dots(dots, stream); });
  }
  const at::Tensor host = sums.sum(1).to(at::kCPU);
  const double* losses = host.const_data_ptr<double>();
  return {losses, losses + count};
}

const bool gram_installed = piece_tokens_stub.install(cuda::kDevice, &piece_tokens_cuda) &&
                            gram_sums_stub.install(cuda::kDevice, &gram_sums_cuda) &&
                            gram_update_stub.install(cuda::kDevice, &gram_update_cuda) &&
                            gram_pack_stub.install(cuda::kDevice, &gram_pack_cuda) &&
                            gram_unpack_stub.install(cuda::kDevice, &gram_unpack_cuda) &&
                            gram_losses_stub.install(cuda::kDevice, &gram_losses_cuda) &&
                            deviation_update_stub.install(cuda::kDevice, &deviation_update_cuda) &&
                            dot_stub.install(cuda::kDevice, &dot_cuda);

}  // namespace
}  // namespace mlcalib
