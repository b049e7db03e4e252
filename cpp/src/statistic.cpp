// SPDX-License-Identifier: Apache-2.0
#include <ATen/TensorOperators.h>
#include <ATen/ops/clone.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/maximum.h>
#include <ATen/ops/minimum.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/zeros.h>
#include <c10/core/InferenceMode.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <mlcalib/statistic.hpp>
#include <set>

#include "check.hpp"
#include "full_precision.hpp"
#include "statistic_registry.hpp"
#include "stubs.hpp"

namespace mlcalib {
namespace {

// Tensors made in inference mode cannot be written outside of it, but a statistic that is collected
// there is merged elsewhere: whatever makes or writes its tensors leaves the mode.
struct LeaveInferenceMode : c10::InferenceMode {
  LeaveInferenceMode() : c10::InferenceMode(false) {}
};

void check_reference(const at::Tensor& reference, const at::Tensor& x) {
  check_floating(reference, "reference");
  TORCH_CHECK_VALUE(reference.sizes() == x.sizes(), "reference has shape ", reference.sizes(),
                    ", expected ", x.sizes(), ", the same tokens as x.");
  check_device(reference, "reference", x, "x");
}

void check_tokens(const std::vector<Statistic*>& statistics, const at::Tensor& x,
                  const at::Tensor& reference) {
  check_floating(x, "x");
  for (const Statistic* each : statistics) {
    TORCH_CHECK_TYPE(each != nullptr, "a statistic is None, expected those of make_statistic.");
    TORCH_CHECK_VALUE(x.dim() >= 1 && x.size(-1) == each->channels(), "x has shape ", x.sizes(),
                      ", expected [..., ", each->channels(), "].");
    TORCH_CHECK_VALUE(reference.defined() || !each->compares(), "the statistic ", each->name(),
                      " compares x with the float model's activations of the same tokens, which ",
                      "are missing; pass reference=.");
  }
  if (reference.defined()) check_reference(reference, x);
}

at::Tensor as_rows(const at::Tensor& x) { return x.detach().reshape({-1, x.size(-1)}); }

// How many of the values are NaN or Inf, int64 [1], where the device counts them and nobody waits
// for it. Elsewhere undefined: they are looked at here, and an error has the first one's place.
at::Tensor count_nonfinite(const at::Tensor& x, const at::Tensor& reference) {
  const c10::DeviceType device = x.device().type();
  if (!count_nonfinite_stub.has(device)) {
    check_finite(x, "x");
    if (reference.defined()) check_finite(reference, "reference");
    return {};
  }
  const at::Tensor found = at::zeros({1}, x.options().dtype(at::kLong));
  count_nonfinite_stub(device, found, as_rows(x));
  if (reference.defined()) count_nonfinite_stub(device, found, as_rows(reference));
  return found;
}

bool is_extreme(const Statistic::Part& part) {
  return part.adds == Statistic::Part::Adds::kLeast ||
         part.adds == Statistic::Part::Adds::kGreatest;
}

// What is kept as the state shows it: the same memory, or, of one triangle, a copy.
at::Tensor shown(const Statistic::Part& part, const at::Tensor& kept) {
  if (!part.symmetric) return kept;
  return gram_unpack_stub(kept.device().type(), kept, part.shape.front());
}

// The inverse, always a copy, whatever the strides of what is given.
at::Tensor keep(const Statistic::Part& part, const at::Tensor& shown) {
  if (part.symmetric) return gram_pack_stub(shown.device().type(), shown);
  return shown.clone(at::MemoryFormat::Contiguous);
}

// sum += weight · other, as the part adds up; in place, so that it cannot stop half way.
void add_part(const Statistic::Part& part, at::Tensor& sum, const at::Tensor& other,
              double weight) {
  switch (part.adds) {
    case Statistic::Part::Adds::kSum:
      sum.add_(other, weight);
      return;
    case Statistic::Part::Adds::kLeast:
      at::minimum_out(sum, sum, other);
      return;
    case Statistic::Part::Adds::kGreatest:
      at::maximum_out(sum, sum, other);
      return;
    case Statistic::Part::Adds::kAlike:
      return;
  }
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

Statistic::Statistic(std::string name, int64_t channels, std::vector<Part> parts)
    : name_(std::move(name)), channels_(channels), parts_(std::move(parts)) {}

// Those that are alike on both sides of a sum are taken from `alike` where it holds any.
std::vector<at::Tensor> Statistic::empty_on(at::Device device,
                                            const std::vector<at::Tensor>& alike) const {
  std::vector<at::Tensor> tensors;
  for (size_t i = 0; i < parts_.size(); ++i) {
    const Part& part = parts_[i];
    if (part.symmetric) {
      tensors.push_back(gram_sums_stub(device.type(), channels_, device));
    } else if (part.adds == Part::Adds::kAlike && !alike.empty()) {
      tensors.push_back(alike[i].to(device, alike[i].scalar_type(), /*non_blocking=*/false,
                                    /*copy=*/true));
    } else {
      tensors.push_back(
          at::full(part.shape, part.empty, at::TensorOptions(part.dtype).device(device)));
    }
  }
  return tensors;
}

// A difference of as many tokens has none, and is not empty.
bool Statistic::is_empty() const {
  if (!begun()) return true;
  if (tokens_ != 0) return false;
  for (size_t i = 0; i < parts_.size(); ++i) {
    if (parts_[i].adds == Part::Adds::kAlike) continue;
    if (kept_[i].ne(parts_[i].empty).any().item<bool>()) return false;
  }
  return true;
}

double Statistic::tokens() const {
  const std::shared_lock lock(mutex_);
  return tokens_;
}

void Statistic::add_nonfinite(const at::Tensor& count) {
  if (!count.defined()) return;
  // New memory: several statistics may have been given the same.
  nonfinite_ = nonfinite_.defined() ? nonfinite_ + count : count;
  known_finite_ = false;
}

std::shared_lock<std::shared_mutex> Statistic::reading() const {
  std::shared_lock lock(mutex_);
  if (known_finite_) return lock;
  const auto found = nonfinite_.item<int64_t>();
  TORCH_CHECK_VALUE(found == 0, "the activations given to the statistic ", name_, " held ", found,
                    " NaN or Inf; the model is damaged, or its dtype overflows.");
  known_finite_ = true;
  return lock;
}

void Statistic::check_finite() const { reading(); }

void update(const std::vector<Statistic*>& statistics, const at::Tensor& x,
            const at::Tensor& reference) {
  check_tokens(statistics, x, reference);
  if (x.numel() == 0) return;
  const LeaveInferenceMode leave;
  const FullPrecision full_precision;
  const at::Tensor nonfinite = count_nonfinite(x, reference);
  const at::Tensor rows = as_rows(x);
  const at::Tensor others = reference.defined() ? as_rows(reference) : reference;
  std::vector<std::unique_lock<std::shared_mutex>> locks;
  // In one order, so that two calls with the same statistics do not wait for each other; each once.
  for (Statistic* each : std::set<Statistic*, std::less<>>(statistics.begin(), statistics.end())) {
    locks.emplace_back(each->mutex_);
  }
  for (Statistic* each : statistics) {
    each->settle(x.device());
    each->add_nonfinite(nonfinite);
  }
  const int64_t piece = piece_tokens_stub(x.device().type(), rows);
  for (int64_t first = 0; first < rows.size(0); first += piece) {
    const int64_t count = std::min(piece, rows.size(0) - first);
    for (Statistic* each : statistics) {
      each->add(rows.narrow(0, first, count),
                others.defined() ? others.narrow(0, first, count) : others);
      each->tokens_ += static_cast<double>(count);
    }
  }
}

// The first tokens decide where a statistic is; before them it takes no memory.
void Statistic::settle(at::Device device) {
  if (begun() && this->device() == device) return;
  TORCH_CHECK_VALUE(is_empty(), "the statistic ", name_, " has its tokens on ", this->device(),
                    " and cannot take others from ", device, "; move them with .to().");
  kept_ = empty_on(device, kept_);
}

void Statistic::update(const at::Tensor& x, const at::Tensor& reference) {
  mlcalib::update({this}, x, reference);
}

void Statistic::rescale(const at::Tensor& factors) {
  TORCH_CHECK_VALUE(factors.dim() == 1 && factors.size(0) == channels_, "factors have shape ",
                    factors.sizes(), ", expected [", channels_, "].");
  check_floating(factors, "factors");
  mlcalib::check_finite(factors, "factors");
  TORCH_CHECK_VALUE(factors.min().item<float>() > 0, "factors go down to ",
                    factors.min().item<float>(), ", expected positive numbers.");
  const LeaveInferenceMode leave;
  const std::unique_lock lock(mutex_);
  settle(device());
  std::vector<at::Tensor> tensors;
  for (size_t i = 0; i < parts_.size(); ++i) tensors.push_back(shown(parts_[i], kept_[i]));
  multiply(tensors, factors.detach().to(device(), at::kFloat));
  for (size_t i = 0; i < parts_.size(); ++i) {
    if (parts_[i].symmetric) kept_[i] = keep(parts_[i], tensors[i]);
  }
}

// Whether what is kept of `other` can be added to what is kept here.
void Statistic::check_mergeable(const Statistic& other) const {
  TORCH_CHECK_VALUE(device() == other.device(), "the statistic ", name_, " has its tokens on ",
                    device(), " and cannot take others from ", other.device(),
                    "; move them with .to().");
  for (size_t i = 0; i < parts_.size(); ++i) {
    TORCH_CHECK_VALUE(parts_[i].adds != Part::Adds::kAlike || kept_[i].equal(other.kept_[i]),
                      "cannot merge statistics ", name_, " of which '", parts_[i].name,
                      "' differs: their channels were rescaled by different factors. Merge them "
                      "first, then rescale.");
  }
}

void Statistic::merge(const Statistic& other, double weight) {
  TORCH_CHECK_VALUE(other.name_ == name_ && other.channels_ == channels_, "cannot merge ",
                    other.name_, " of ", other.channels_, " channels into ", name_, " of ",
                    channels_, " channels; expected the same kind and number of channels.");
  TORCH_CHECK_VALUE(std::isfinite(weight), "weight is ", weight, ", expected a finite number.");
  TORCH_CHECK_VALUE(weight >= 0 || !std::any_of(parts_.begin(), parts_.end(), is_extreme),
                    "cannot merge a ", name_, " with the weight ", weight,
                    ": extremes cannot be taken away; expected a weight of 0 or more.");
  const LeaveInferenceMode leave;
  std::unique_lock own(mutex_, std::defer_lock);
  std::shared_lock theirs(other.mutex_, std::defer_lock);
  if (&other == this) {
    own.lock();
  } else {
    std::lock(own, theirs);
  }
  if (weight == 0 || other.is_empty()) return;
  const bool first = is_empty();
  if (!first) check_mergeable(other);
  std::vector<at::Tensor> sums = first ? empty_on(other.device(), other.kept_) : kept_;
  for (size_t i = 0; i < parts_.size(); ++i) {
    add_part(parts_[i], sums[i], other.kept_[i], weight);
  }
  kept_ = std::move(sums);
  tokens_ += weight * other.tokens_;
  if (!other.known_finite_) add_nonfinite(other.nonfinite_);
}

TensorMap Statistic::show(bool copies) const {
  const LeaveInferenceMode leave;
  const std::shared_lock lock = reading();
  const std::vector<at::Tensor> tensors = begun() ? kept_ : empty_on(device(), {});
  TensorMap result;
  for (size_t i = 0; i < parts_.size(); ++i) {
    const at::Tensor tensor = shown(parts_[i], tensors[i]);
    // What was unpacked is a copy already.
    result[parts_[i].name] = copies && !parts_[i].symmetric ? tensor.clone() : tensor;
  }
  result["tokens"] = at::scalar_tensor(tokens_, at::TensorOptions(at::kDouble));
  return result;
}

TensorMap Statistic::state() const { return show(/*copies=*/true); }

TensorMap Statistic::view() const { return show(/*copies=*/false); }

void Statistic::check_state(const TensorMap& state) const {
  for (const auto& entry : state) {
    const std::string& key = entry.first;
    TORCH_CHECK_VALUE(key == "tokens" || std::any_of(parts_.begin(), parts_.end(),
                                                     [&](const Part& p) { return p.name == key; }),
                      "state of ", name_, " holds the unknown tensor '", key, "'.");
  }
  for (const Part& part : parts_) {
    const auto found = state.find(part.name);
    TORCH_CHECK_VALUE(found != state.end(), "state of ", name_, " lacks the tensor '", part.name,
                      "'.");
    const at::Tensor& tensor = found->second;
    TORCH_CHECK_VALUE(tensor.sizes() == part.shape && tensor.scalar_type() == part.dtype, "'",
                      part.name, "' in the state of ", name_, " is ", tensor.scalar_type(), " ",
                      tensor.sizes(), ", expected ", part.dtype, " ", at::IntArrayRef(part.shape),
                      ".");
    const at::Device first = state.at(parts_.front().name).device();
    TORCH_CHECK_VALUE(tensor.device() == first, "'", part.name, "' in the state of ", name_,
                      " is on ", tensor.device(), " but '", parts_.front().name, "' is on ", first,
                      ", expected one device.");
  }
  const auto tokens = state.find("tokens");
  TORCH_CHECK_VALUE(tokens != state.end() && tokens->second.numel() == 1, "state of ", name_,
                    " needs 'tokens', one number.");
}

void Statistic::load(const TensorMap& state) {
  check_state(state);
  const LeaveInferenceMode leave;
  const auto tokens = state.at("tokens").item<double>();
  std::vector<at::Tensor> loaded;
  for (const Part& part : parts_) {
    loaded.push_back(keep(part, state.at(part.name).detach()));
  }
  const std::unique_lock lock(mutex_);
  kept_ = std::move(loaded);
  tokens_ = tokens;
  nonfinite_.reset();
  known_finite_ = true;
}

TensorMap Statistic::packed(at::Device device) {
  const LeaveInferenceMode leave;
  {
    const std::unique_lock lock(mutex_);
    settle(device);
  }
  const std::shared_lock lock = reading();
  TensorMap result;
  for (size_t i = 0; i < parts_.size(); ++i) result[parts_[i].name] = kept_[i];
  result["tokens"] = at::scalar_tensor(tokens_, at::TensorOptions(at::kDouble));
  return result;
}

void Statistic::load_packed(const TensorMap& packed) {
  const LeaveInferenceMode leave;
  const std::unique_lock lock(mutex_);
  std::vector<at::Tensor> loaded;
  for (size_t i = 0; i < parts_.size(); ++i) {
    const auto found = packed.find(parts_[i].name);
    TORCH_CHECK_VALUE(begun() && found != packed.end() &&
                          found->second.sizes() == kept_[i].sizes() &&
                          found->second.scalar_type() == kept_[i].scalar_type() &&
                          found->second.device() == kept_[i].device(),
                      "'", parts_[i].name, "' of ", name_,
                      " is missing or unlike what packed() gave; expected its tensors.");
    loaded.push_back(found->second);
  }
  const auto tokens = packed.find("tokens");
  TORCH_CHECK_VALUE(tokens != packed.end() && tokens->second.numel() == 1, "what is kept of ",
                    name_, " needs 'tokens', one number.");
  tokens_ = tokens->second.item<double>();
  kept_ = std::move(loaded);
  nonfinite_.reset();
  known_finite_ = true;
}

}  // namespace mlcalib
