// SPDX-License-Identifier: Apache-2.0
#include <ATen/TensorOperators.h>
#include <ATen/ops/zeros.h>
#include <c10/util/Exception.h>

#include <mlcalib/linear.hpp>

#include "check.hpp"
#include "stubs.hpp"

namespace mlcalib {

std::vector<double> losses(const at::Tensor& weight, const QuantizedLinear& quantized,
                           at::TensorList grams) {
  const at::Tensor checked = check_weight(weight);
  TORCH_CHECK_VALUE(checked.sizes() == quantized.codes.sizes(), "weight has shape ",
                    checked.sizes(), " but the codes have shape ", quantized.codes.sizes(),
                    "; expected the weight that was quantized.");
  check_device(quantized.codes, "the codes", checked, "weight");
  return losses(checked - quantized.dequantize(), grams);
}

std::vector<double> losses(const at::Tensor& change, at::TensorList grams) {
  const at::Tensor checked = check_weight(change);
  const int64_t channels = checked.size(1);
  for (const at::Tensor& gram : grams) {
    check_gram(gram, channels);
    check_device(gram, "gram", checked, "weight");
  }

  const at::DeviceType device = checked.device().type();
  const at::Tensor error_gram = at::zeros({channels, channels}, checked.options());
  gram_update_stub(device, error_gram, checked);
  mirror_stub(device, error_gram);

  std::vector<double> result;
  for (const at::Tensor& gram : grams) {
    result.push_back(dot_stub(device, error_gram, gram.contiguous()));
  }
  return result;
}

}  // namespace mlcalib
