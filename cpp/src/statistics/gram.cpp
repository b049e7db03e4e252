// SPDX-License-Identifier: Apache-2.0
#include "../gram.hpp"

#include <ATen/TensorOperators.h>

#include "../check.hpp"
#include "../statistic_registry.hpp"
#include "../stubs.hpp"

namespace mlcalib {

Gram::Gram(std::string name, int64_t channels)
    : Statistic(std::move(name), channels,
                {{.name = "gram", .shape = {channels, channels}, .symmetric = true}}) {}

void Gram::add(const at::Tensor& x, const at::Tensor& /*reference*/) {
  gram_update_stub(x.device().type(), kept(0), x);
}

void Gram::multiply(const std::vector<at::Tensor>& tensors, const at::Tensor& factors) {
  tensors.front().mul_(factors).mul_(factors.unsqueeze(1));
}

double Gram::dot(const at::Tensor& sums) const {
  const std::shared_lock lock = reading();
  if (!begun()) return 0;
  check_device(kept(0), "a Gram", sums, "the change");
  return gram_dot_stub(sums.device().type(), sums, kept(0), channels());
}

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
