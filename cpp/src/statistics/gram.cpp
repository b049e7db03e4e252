// SPDX-License-Identifier: Apache-2.0
#include "../gram.hpp"

#include <ATen/TensorOperators.h>

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

Gram::Held Gram::held() const {
  std::shared_lock lock = reading();
  return {.lock = std::move(lock), .sums = begun() ? kept(0) : at::Tensor()};
}

at::Tensor gram_of(const at::Tensor& x) {
  const c10::DeviceType device = x.device().type();
  const at::Tensor sums = gram_sums_stub(device, x.size(1), x.device());
  gram_update_stub(device, sums, x);
  return gram_unpack_stub(device, sums, x.size(1));
}

namespace {

std::unique_ptr<Statistic> make_gram(std::string name, int64_t channels) {
  return std::make_unique<Gram>(std::move(name), channels);
}

const bool registered = register_statistic("gram", &make_gram) &&
                        // Of activations times the norm of the loss's gradient at what reads them.
                        register_statistic("saliency_gram", &make_gram) &&
                        // Of gradients at the outputs of a linear, times the norm of its input.
                        register_statistic("output_gram", &make_gram);

}  // namespace

}  // namespace mlcalib
