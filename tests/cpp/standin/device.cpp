// SPDX-License-Identifier: Apache-2.0
// The stand-in as torch knows a device: its allocator, which device is the current one, and pinned
// memory. There is one stream, and nothing runs beside the host.
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/util/Exception.h>
#include <torch/library.h>

#include <algorithm>
#include <cstring>
#include <mutex>
#include <set>
#include <utility>

#include "memory.hpp"

namespace standin {
namespace {

thread_local c10::DeviceIndex current = 0;

c10::DeviceIndex exchange(c10::DeviceIndex device) {
  if (device < 0) return current;
  TORCH_CHECK(device < kDevices, "there are ", static_cast<int>(kDevices),
              " stand-in devices, and none is number ", static_cast<int>(device));
  return std::exchange(current, device);
}

class DeviceAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    void* data = standin::allocate(bytes, current);
    return {data, data, &release, c10::Device(kType, current)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    std::memcpy(host_address(to), host_address(from), bytes);
  }
};

/// Ordinary memory whose addresses are remembered.
class PinnedAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    void* data = c10::GetCPUAllocator()->raw_allocate(bytes);
    const std::lock_guard lock(mutex);
    pinned.insert(data);
    return {data, data, &release_pinned, c10::kCPU};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release_pinned; }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    std::memcpy(to, from, bytes);
  }
  static bool holds(const void* data) {
    const std::lock_guard lock(mutex);
    return pinned.contains(const_cast<void*>(data));
  }

 private:
  static void release_pinned(void* data) {
    {
      const std::lock_guard lock(mutex);
      pinned.erase(data);
    }
    c10::GetCPUAllocator()->raw_deallocate(data);
  }
  static inline std::mutex mutex;
  static inline std::set<void*> pinned;
};

DeviceAllocator allocator;
PinnedAllocator pinned_allocator;

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return kType; }
  c10::Device exchangeDevice(c10::Device device) const override {
    return {kType, exchange(device.index())};
  }
  c10::Device getDevice() const override { return {kType, current}; }
  void setDevice(c10::Device device) const override { exchange(device.index()); }
  void uncheckedSetDevice(c10::Device device) const noexcept override {
    if (device.index() >= 0) current = device.index();
  }
  c10::Stream getStream(c10::Device device) const noexcept override {
    const c10::DeviceIndex index = device.index() < 0 ? current : device.index();
    return c10::Stream(c10::Stream::DEFAULT, c10::Device(kType, index));
  }
  c10::Stream getDefaultStream(c10::Device device) const override { return getStream(device); }
  c10::Stream exchangeStream(c10::Stream stream) const noexcept override {
    return getStream(stream.device());
  }
  c10::DeviceIndex deviceCount() const noexcept override { return kDevices; }
  bool queryStream(const c10::Stream& /*stream*/) const override { return true; }
  void synchronizeStream(const c10::Stream& /*stream*/) const override {}
  void synchronizeDevice(c10::DeviceIndex /*device*/) const override {}
};

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex /*device*/) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return kDevices; }
  void setCurrentDevice(c10::DeviceIndex device) const override { exchange(device); }
  c10::DeviceIndex getCurrentDevice() const override { return current; }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex device) const override {
    return exchange(device);
  }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex device) const override {
    return exchange(device);
  }
  bool isPinnedPtr(const void* data) const override { return PinnedAllocator::holds(data); }
  c10::Allocator* getPinnedMemoryAllocator() const override { return &pinned_allocator; }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t bytes) const override {
    const c10::DeviceGuard guard(storage.device());
    c10::DataPtr data = allocator.allocate(bytes);
    const size_t kept = std::min(bytes, storage.nbytes());
    if (kept > 0) allocator.copy_data(data.get(), storage.data(), kept);
    storage.unsafeGetStorageImpl()->set_data_ptr_noswap(std::move(data));
    storage.unsafeGetStorageImpl()->set_nbytes(bytes);
  }
};

[[maybe_unused]] const bool registered = [] {
  c10::SetAllocator(kType, &allocator);
  at::RegisterPrivateUse1HooksInterface(new Hooks());
  return true;
}();

C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard)

// What the module torch.standin calls.
TORCH_LIBRARY(standin, m) {
  m.def("device_count() -> int", [] { return int64_t{kDevices}; });
  m.def("current_device() -> int", [] { return int64_t{current}; });
  m.def("set_device(int device) -> ()",
        [](int64_t device) { exchange(static_cast<c10::DeviceIndex>(device)); });
  m.def("memory(int device) -> (int, int)", [](int64_t device) {
    return std::tuple(static_cast<int64_t>(free_bytes(static_cast<c10::DeviceIndex>(device))),
                      static_cast<int64_t>(kDeviceBytes));
  });
  m.def("name_faults() -> ()", [] { name_faults(); });
}

}  // namespace
}  // namespace standin
