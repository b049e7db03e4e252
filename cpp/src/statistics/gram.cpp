// SPDX-License-Identifier: Apache-2.0
#include "../gram.hpp"

#include <ATen/TensorOperators.h>

#include "../statistic_registry.hpp"
#include "../stubs.hpp"

namespace mlcalib {

Gram::Gram(std::string name, int64_t channels)
    : Statistic(std::move(name), channels), sums_(gram_sums_stub(at::kCPU, channels, at::kCPU)) {}

void Gram::add(const at::Tensor& x, const at::Tensor& /*reference*/) {
  gram_update_stub(x.device().type(), sums_, x);
}

void Gram::add(const Statistic& other, double weight) {
  sums_.add_(static_cast<const Gram&>(other).sums_, weight);
}

void Gram::multiply(const at::Tensor& factors) {
  pack(unpacked().mul_(factors).mul_(factors.unsqueeze(1)));
}

void Gram::move(at::Device device) { pack(unpacked().to(device)); }

TensorMap Gram::tensors() const { return {{"gram", unpacked()}}; }

void Gram::set_tensors(const TensorMap& tensors) { pack(tensors.at("gram")); }

at::Tensor Gram::unpacked() const {
  return gram_unpack_stub(sums_.device().type(), sums_, channels());
}

void Gram::pack(const at::Tensor& gram) { sums_ = gram_pack_stub(gram.device().type(), gram); }

at::Tensor gram_sums_of(const at::Tensor& x) {
  at::Tensor sums = gram_sums_stub(x.device().type(), x.size(1), x.device());
  gram_update_stub(x.device().type(), sums, x);
  return sums;
}

at::Tensor gram_of(const at::Tensor& x) {
  return gram_unpack_stub(x.device().type(), gram_sums_of(x), x.size(1));
}

namespace {
MLCALIB_STATISTIC("gram", Gram);
}

}  // namespace mlcalib
