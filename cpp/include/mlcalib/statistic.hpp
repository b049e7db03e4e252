// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <memory>
#include <mlcalib/export.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace MLCALIB_API mlcalib {

using TensorMap = std::map<std::string, at::Tensor>;

/// A summary of activations that adds up over tokens, batches, languages and processes.
class Statistic {
 public:
  Statistic(std::string name, int64_t channels) : name_(std::move(name)), channels_(channels) {}
  virtual ~Statistic() = default;
  Statistic(const Statistic&) = delete;
  Statistic& operator=(const Statistic&) = delete;

  const std::string& name() const { return name_; }
  int64_t channels() const { return channels_; }
  /// Tokens seen; fractional after a weighted merge.
  double tokens() const { return tokens_; }

  /// Whether it compares activations with others of the same tokens, and needs a reference.
  virtual bool compares() const { return false; }

  /// Adds the tokens of x [..., channels], float32, bfloat16 or float16; `reference`, of x's shape,
  /// holds the float model's activations for the same tokens. The first tokens decide on which
  /// device the statistic is. Throws ValueError for NaN or Inf, for tokens on another device and
  /// for a reference that is needed and not given, and then has added nothing.
  void update(const at::Tensor& x, const at::Tensor& reference = {});
  /// *this += weight · other. Throws ValueError for another kind, number of channels or device.
  void merge(const Statistic& other, double weight = 1.0);
  /// As if every activation had been multiplied, channel by channel, by factors [channels]. Throws
  /// ValueError unless they are positive and finite.
  void rescale(const at::Tensor& factors);
  /// Copies: the named tensors of the statistic, and "tokens" (float64, no dimensions).
  TensorMap state() const;
  /// As state(), without a copy of tensors that the statistic keeps as they are: good until it
  /// changes; not to be written to.
  TensorMap view() const;
  /// Replaces the state. Throws ValueError for missing, foreign or misshapen tensors.
  void load(const TensorMap& state);

 protected:
  /// x: [tokens, channels], checked and finite, as is the reference, undefined where none was
  /// given.
  virtual void add(const at::Tensor& x, const at::Tensor& reference) = 0;
  virtual void add(const Statistic& other, double weight) = 0;  ///< of the same kind
  virtual void multiply(const at::Tensor& factors) = 0;         ///< float32 [channels], positive
  virtual at::Device device() const = 0;
  virtual void move(at::Device device) = 0;
  virtual TensorMap tensors() const = 0;  ///< its own, or made from what it keeps
  virtual void set_tensors(const TensorMap& tensors) = 0;

 private:
  friend void update(const std::vector<Statistic*>& statistics, const at::Tensor& x,
                     const at::Tensor& reference);
  void settle(at::Device device);

  std::string name_;
  int64_t channels_;
  double tokens_ = 0;
};

/// Several statistics of the same activations in one pass over memory: each piece of x is seen by
/// all of them while it is in the cache. Throws as Statistic::update does, before any was changed.
void update(const std::vector<Statistic*>& statistics, const at::Tensor& x,
            const at::Tensor& reference = {});

/// Throws ValueError for a name that is not registered.
std::unique_ptr<Statistic> make_statistic(std::string_view name, int64_t channels);
std::vector<std::string> statistic_names();

}  // namespace mlcalib
