// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <atomic>
#include <map>
#include <memory>
#include <mlcalib/export.hpp>
#include <mutex>
#include <shared_mutex>
#include <string>
#include <string_view>
#include <vector>

namespace MLCALIB_API mlcalib {

using TensorMap = std::map<std::string, at::Tensor>;

/// A summary of activations that adds up over tokens, batches, languages and processes. Its members
/// may be called from several threads: changes wait for each other, and readers for changes.
class Statistic {
 public:
  /// One tensor of a statistic: what its state calls it, and how two of them become one.
  struct Part {
    enum class Adds {
      kSum,       ///< both sides, the other's with its weight
      kLeast,     ///< the lesser; a weight says only whether the other side counts
      kGreatest,  ///< the greater
      kAlike,     ///< nothing: what the others are measured in is the same on both sides
    };

    std::string name;
    std::vector<int64_t> shape;
    at::ScalarType dtype = at::kFloat;
    Adds adds = Adds::kSum;
    double empty = 0;        ///< what it holds before the first token
    bool symmetric = false;  ///< [channels, channels], of which one triangle is summed and kept
  };

  virtual ~Statistic() = default;
  Statistic(const Statistic&) = delete;
  Statistic& operator=(const Statistic&) = delete;

  const std::string& name() const { return name_; }
  int64_t channels() const { return channels_; }
  /// Tokens seen; fractional after a weighted merge.
  double tokens() const;

  /// Whether it compares activations with others of the same tokens, and needs a reference.
  virtual bool compares() const { return false; }

  /// Adds the tokens of x [..., channels], float32, bfloat16 or float16; `reference`, of x's shape,
  /// holds the float model's activations for the same tokens. The first tokens decide on which
  /// device the statistic is. Throws ValueError for tokens on another device and for a reference
  /// that is needed and not given, and then has added nothing. NaN and Inf are a ValueError too: on
  /// the CPU of the update, which then has added nothing; on a GPU, which is not waited for, of
  /// whatever reads the statistic next (check_finite, state, view, losses).
  void update(const at::Tensor& x, const at::Tensor& reference = {});
  /// Throws ValueError where tokens held NaN or Inf that no update has found, and waits for the
  /// device if there are tokens that were not looked at. Such a statistic stays unusable.
  void check_finite() const;
  /// *this += weight · other, and so is what check_finite finds. An empty one changes nothing.
  /// Throws ValueError for another kind, number of channels or device, for channels that were
  /// rescaled by other factors, and for extremes with a negative weight; nothing has changed then.
  void merge(const Statistic& other, double weight = 1.0);
  /// As if every activation had been multiplied, channel by channel, by factors [channels]. Throws
  /// ValueError unless they are positive and finite.
  void rescale(const at::Tensor& factors);
  /// Copies: the named tensors of the statistic, and "tokens" (float64, no dimensions).
  TensorMap state() const;
  /// As state(), without a copy of tensors that the statistic keeps as they are: good until it
  /// changes; not to be written to.
  TensorMap view() const;
  /// Replaces the state; the statistic is then where its tensors are. Throws ValueError for
  /// missing, foreign or misshapen tensors, and for tensors on several devices.
  void load(const TensorMap& state);
  /// The tensors as they are kept, of a symmetric one a triangle in the device's own layout, and
  /// "tokens": for what adds them up over processes on devices of one type, where they have one
  /// size. Those of an empty statistic are made on `device`. They share memory with the statistic.
  /// Throws ValueError as check_finite does, and for tokens on another device.
  TensorMap packed(at::Device device);
  /// Replaces what is kept by tensors as of packed(), without a copy. Throws ValueError for others.
  void load_packed(const TensorMap& packed);
  const std::vector<Part>& parts() const { return parts_; }

 protected:
  Statistic(std::string name, int64_t channels, std::vector<Part> parts);

  /// Whether it holds tensors: those of an empty statistic are made when the first tokens come.
  bool begun() const { return !kept_.empty(); }
  /// The tensor of a part: contiguous, or in the device's own layout where it is symmetric.
  const at::Tensor& kept(size_t part) const { return kept_[part]; }
  /// Held by who reads what is kept, which is finite: throws as check_finite does.
  std::shared_lock<std::shared_mutex> reading() const;

  /// x: [tokens, channels], checked, as is the reference, undefined where none was given.
  virtual void add(const at::Tensor& x, const at::Tensor& reference) = 0;
  /// Multiplies the tensors of all parts in place; factors float32 [channels], positive.
  virtual void multiply(const std::vector<at::Tensor>& tensors, const at::Tensor& factors) = 0;

 private:
  friend void update(const std::vector<Statistic*>& statistics, const at::Tensor& x,
                     const at::Tensor& reference);
  at::Device device() const { return begun() ? kept_.front().device() : at::kCPU; }
  bool is_empty() const;
  void settle(at::Device device);
  std::vector<at::Tensor> empty_on(at::Device device, const std::vector<at::Tensor>& alike) const;
  void check_mergeable(const Statistic& other) const;
  void check_state(const TensorMap& state) const;
  TensorMap show(bool copies) const;
  void add_nonfinite(const at::Tensor& count);

  std::string name_;
  int64_t channels_;
  std::vector<Part> parts_;
  std::vector<at::Tensor> kept_;
  double tokens_ = 0;
  at::Tensor nonfinite_;  // int64 [1], where the tokens are: NaN and Inf that no update looked for
  mutable std::atomic<bool> known_finite_ = true;  // nonfinite_ was read, and is 0
  mutable std::shared_mutex mutex_;
};

/// Several statistics of the same activations in one pass over memory: each piece of x is seen by
/// all of them while it is in the cache. Throws as Statistic::update does, before any was changed,
/// and TypeError for a null pointer.
void update(const std::vector<Statistic*>& statistics, const at::Tensor& x,
            const at::Tensor& reference = {});

/// Throws ValueError for a name that is not registered. May be called from several threads.
std::unique_ptr<Statistic> make_statistic(std::string_view name, int64_t channels);
std::vector<std::string> statistic_names();

}  // namespace mlcalib
