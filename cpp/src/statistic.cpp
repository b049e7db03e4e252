// SPDX-License-Identifier: Apache-2.0
#include <ATen/ops/clone.h>
#include <ATen/ops/scalar_tensor.h>
#include <c10/core/InferenceMode.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <mlcalib/statistic.hpp>

#include "check.hpp"
#include "statistic_registry.hpp"

namespace mlcalib {
namespace {

// Tensors made in inference mode cannot be written outside of it, but a statistic that is collected
// there is merged elsewhere: whatever makes or writes its tensors leaves the mode.
struct LeaveInferenceMode : c10::InferenceMode {
  LeaveInferenceMode() : c10::InferenceMode(false) {}
};

// A piece of activations stays in the cache and is a multiple of what the Gram's kernel takes at a
// time, so that pieces change no sum.
constexpr int64_t kPieceBytes = 1 << 20;
constexpr int64_t kPieceTokens = 256;

// Tokens of a piece of rows [tokens, channels]; a device with kernels of its own cuts for itself.
int64_t piece_of(const at::Tensor& rows) {
  if (!rows.is_cpu()) return rows.size(0);
  const int64_t fitting = kPieceBytes / (rows.size(1) * rows.element_size());
  return std::max<int64_t>(fitting / kPieceTokens, 1) * kPieceTokens;
}

void check_reference(const at::Tensor& reference, const at::Tensor& x) {
  check_floating(reference, "reference");
  TORCH_CHECK_VALUE(reference.sizes() == x.sizes(), "reference has shape ", reference.sizes(),
                    ", expected ", x.sizes(), ", the same tokens as x.");
  check_device(reference, "reference", x, "x");
}

using Registry = std::map<std::string, StatisticFactory, std::less<>>;

Registry& registry() {
  static Registry instance;
  return instance;
}

std::string join(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

}  // namespace

bool register_statistic(const char* name, StatisticFactory factory) {
  return registry().emplace(name, factory).second;
}

std::vector<std::string> statistic_names() {
  std::vector<std::string> names;
  for (const auto& [name, factory] : registry()) names.push_back(name);
  return names;
}

std::unique_ptr<Statistic> make_statistic(std::string_view name, int64_t channels) {
  const auto found = registry().find(name);
  TORCH_CHECK_VALUE(found != registry().end(), "Unknown statistic '", name,
                    "'. Available: ", join(statistic_names()), ".");
  TORCH_CHECK_VALUE(channels > 0, "channels is ", channels, ", expected a positive number.");
  const LeaveInferenceMode leave;
  return found->second(std::string(name), channels);
}

void update(const std::vector<Statistic*>& statistics, const at::Tensor& x,
            const at::Tensor& reference) {
  check_floating(x, "x");
  for (const Statistic* each : statistics) {
    TORCH_CHECK_VALUE(x.dim() >= 1 && x.size(-1) == each->channels_, "x has shape ", x.sizes(),
                      ", expected [..., ", each->channels_, "].");
    TORCH_CHECK_VALUE(reference.defined() || !each->compares(), "the statistic ", each->name_,
                      " compares x with the float model's activations of the same tokens, which ",
                      "are missing; pass reference=.");
  }
  if (reference.defined()) check_reference(reference, x);
  if (x.numel() == 0) return;
  check_finite(x, "x");
  if (reference.defined()) check_finite(reference, "reference");
  const LeaveInferenceMode leave;
  for (Statistic* each : statistics) each->settle(x.device());
  const at::Tensor rows = x.detach().reshape({-1, x.size(-1)});
  const at::Tensor others =
      reference.defined() ? reference.detach().reshape(rows.sizes()) : reference;
  const int64_t piece = piece_of(rows);
  for (int64_t first = 0; first < rows.size(0); first += piece) {
    const int64_t count = std::min(piece, rows.size(0) - first);
    for (Statistic* each : statistics) {
      each->add(rows.narrow(0, first, count),
                others.defined() ? others.narrow(0, first, count) : others);
      each->tokens_ += static_cast<double>(count);
    }
  }
}

// The first tokens decide where a statistic is.
void Statistic::settle(at::Device device) {
  if (this->device() == device) return;
  TORCH_CHECK_VALUE(tokens_ == 0, "the statistic ", name_, " has its tokens on ", this->device(),
                    " and cannot take others from ", device, "; move them with .to().");
  move(device);
}

void Statistic::update(const at::Tensor& x, const at::Tensor& reference) {
  mlcalib::update({this}, x, reference);
}

void Statistic::rescale(const at::Tensor& factors) {
  TORCH_CHECK_VALUE(factors.dim() == 1 && factors.size(0) == channels_, "factors have shape ",
                    factors.sizes(), ", expected [", channels_, "].");
  check_floating(factors, "factors");
  check_finite(factors, "factors");
  TORCH_CHECK_VALUE(factors.min().item<float>() > 0, "factors go down to ",
                    factors.min().item<float>(), ", expected positive numbers.");
  const LeaveInferenceMode leave;
  multiply(factors.detach().to(device(), at::kFloat));
}

void Statistic::merge(const Statistic& other, double weight) {
  TORCH_CHECK_VALUE(other.name_ == name_ && other.channels_ == channels_, "cannot merge ",
                    other.name_, " of ", other.channels_, " channels into ", name_, " of ",
                    channels_, " channels; expected the same kind and number of channels.");
  TORCH_CHECK_VALUE(std::isfinite(weight), "weight is ", weight, ", expected a finite number.");
  const LeaveInferenceMode leave;
  if (other.tokens_ == 0 && other.device() != device()) return;  // empty, and never settled
  settle(other.device());
  add(other, weight);
  tokens_ += weight * other.tokens_;
}

TensorMap Statistic::state() const {
  TensorMap result = view();
  for (auto& [name, tensor] : result) tensor = tensor.clone();
  return result;
}

TensorMap Statistic::view() const {
  const LeaveInferenceMode leave;
  TensorMap result = tensors();
  result["tokens"] = at::scalar_tensor(tokens_, at::TensorOptions(at::kDouble));
  return result;
}

void Statistic::load(const TensorMap& state) {
  const TensorMap own = tensors();
  for (const auto& [key, tensor] : state) {
    TORCH_CHECK_VALUE(key == "tokens" || own.contains(key), "state of ", name_,
                      " holds the unknown tensor '", key, "'.");
  }
  for (const auto& [key, tensor] : own) {
    const auto found = state.find(key);
    TORCH_CHECK_VALUE(found != state.end(), "state of ", name_, " lacks the tensor '", key, "'.");
    TORCH_CHECK_VALUE(found->second.sizes() == tensor.sizes() &&
                          found->second.scalar_type() == tensor.scalar_type(),
                      "'", key, "' in the state of ", name_, " is ", found->second.scalar_type(),
                      " ", found->second.sizes(), ", expected ", tensor.scalar_type(), " ",
                      tensor.sizes(), ".");
  }
  const auto tokens = state.find("tokens");
  TORCH_CHECK_VALUE(tokens != state.end() && tokens->second.numel() == 1, "state of ", name_,
                    " needs 'tokens', one number.");
  const LeaveInferenceMode leave;
  set_tensors(state);
  tokens_ = tokens->second.item<double>();
}

}  // namespace mlcalib
