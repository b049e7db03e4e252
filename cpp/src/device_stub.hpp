// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <c10/core/DeviceType.h>

#include <array>
#include <utility>

namespace mlcalib {

/// Throws NotImplementedError that names the kernel and the device.
[[noreturn]] void throw_missing_kernel(const char* kernel, c10::DeviceType device);

template <class Signature>
class DeviceStub;

/// A kernel with one implementation per device; each backend installs its own at load time.
template <class R, class... Args>
class DeviceStub<R(Args...)> {
 public:
  using Fn = R (*)(Args...);

  explicit constexpr DeviceStub(const char* name) : name_(name) {}

  bool install(c10::DeviceType device, Fn fn) {
    table_[static_cast<size_t>(device)] = fn;
    return true;
  }

  bool has(c10::DeviceType device) const { return table_[static_cast<size_t>(device)] != nullptr; }

  R operator()(c10::DeviceType device, Args... args) const {
    const Fn fn = table_[static_cast<size_t>(device)];
    if (fn == nullptr) throw_missing_kernel(name_, device);
    return fn(std::forward<Args>(args)...);
  }

 private:
  const char* name_;
  std::array<Fn, c10::COMPILE_TIME_MAX_DEVICE_TYPES> table_{};
};

}  // namespace mlcalib
