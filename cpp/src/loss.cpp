// SPDX-License-Identifier: Apache-2.0
#include <ATen/TensorOperators.h>
#include <c10/util/Exception.h>

#include <map>
#include <mlcalib/linear.hpp>

#include "check.hpp"
#include "full_precision.hpp"
#include "gram.hpp"
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
  const FullPrecision full_precision;
  const at::Tensor checked = check_weight(change);
  const int64_t channels = checked.size(1);
  for (const at::Tensor& gram : grams) {
    check_gram(gram, channels);
    check_device(gram, "gram", checked, "weight");
  }

  const at::Tensor error_gram = gram_of(checked);
  std::vector<double> result;
  for (const at::Tensor& gram : grams) {
    result.push_back(dot_stub(checked.device().type(), error_gram, gram.contiguous()));
  }
  return result;
}

std::vector<double> losses(const at::Tensor& change, const std::vector<const Statistic*>& grams) {
  const FullPrecision full_precision;
  const at::Tensor checked = check_weight(change);
  std::vector<const Gram*> found;
  for (const Statistic* each : grams) {
    TORCH_CHECK_TYPE(each != nullptr, "a Gram is None, expected those of make_statistic('gram').");
    found.push_back(dynamic_cast<const Gram*>(each));
    TORCH_CHECK_VALUE(found.back() != nullptr, "the statistic ", each->name(),
                      " is not a Gram; expected those made with make_statistic('gram', channels).");
    TORCH_CHECK_VALUE(each->channels() == checked.size(1), "a Gram has ", each->channels(),
                      " channels, expected ", checked.size(1), ", those of the change.");
  }
  // Each once and in one order, as updates lock them; those of no tokens lose nothing.
  std::map<const Gram*, double, std::less<>> loss;
  for (const Gram* each : found) loss[each] = 0;
  std::vector<Gram::Held> held;
  std::vector<at::Tensor> sums;
  std::vector<double*> places;
  for (auto& [gram, value] : loss) {
    held.push_back(gram->held());
    if (!held.back().sums.defined()) continue;
    sums.push_back(held.back().sums);
    places.push_back(&value);
    check_device(sums.back(), "a Gram", checked, "the change");
  }
  const std::vector<double> values = sums.empty()
                                         ? std::vector<double>()
                                         : gram_losses_stub(checked.device().type(), checked, sums);
  for (size_t i = 0; i < values.size(); ++i) *places[i] = values[i];
  std::vector<double> result;
  for (const Gram* each : found) result.push_back(loss.at(each));
  return result;
}

}  // namespace mlcalib
