// SPDX-License-Identifier: Apache-2.0
#include "memory.hpp"

#include <c10/util/Exception.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <map>
#include <mutex>

namespace standin {
namespace {

constexpr size_t kAlignment = 512;
constexpr size_t kBytes = kDevices * kDeviceBytes;

// The first half is what tensors carry, the second half the bytes themselves.
std::byte* map_memory() {
  void* memory =
      mmap(nullptr, 2 * kBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  TORCH_CHECK(memory != MAP_FAILED, "the stand-in device gets no memory");
  auto* const first = static_cast<std::byte*>(memory);
  TORCH_CHECK(mprotect(first + kBytes, kBytes, PROT_READ | PROT_WRITE) == 0,
              "the stand-in device gets no memory");
  return first;
}

std::byte* const memory = map_memory();

/// Offset → bytes; neighbours in `free` are joined.
struct Heap {
  std::map<size_t, size_t> free, taken;
};

std::mutex mutex;
Heap heaps[kDevices];
const bool begun = [] {
  for (size_t i = 0; i < kDevices; ++i) heaps[i].free[i * kDeviceBytes] = kDeviceBytes;
  return true;
}();

bool is_device_memory(const void* data) { return data >= memory && data < memory + kBytes; }

struct sigaction before {};
int errors = STDERR_FILENO;

void on_fault(int signal, siginfo_t* info, void* /*context*/) {
  if (info->si_code > 0 && is_device_memory(info->si_addr)) {
    constexpr char kMessage[] =
        "host access to device memory: what a tensor on the stand-in device points to was read or "
        "written by the CPU\n";
    [[maybe_unused]] const ssize_t written = write(errors, kMessage, sizeof kMessage - 1);
  }
  sigaction(signal, &before, nullptr);  // the access is tried again, and ends as it would have
}

}  // namespace

void* allocate(size_t bytes, c10::DeviceIndex device) {
  const size_t wanted = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  if (wanted == 0) return nullptr;
  const std::lock_guard lock(mutex);
  Heap& heap = heaps[device];
  for (const auto& [offset, size] : heap.free) {
    if (size < wanted) continue;
    const size_t first = offset, rest = size - wanted;
    heap.free.erase(first);
    if (rest > 0) heap.free[first + wanted] = rest;
    heap.taken[first] = wanted;
    std::memset(memory + kBytes + first, 0xff, wanted);
    return memory + first;
  }
  TORCH_CHECK_WITH(OutOfMemoryError, false, "the stand-in device is out of memory: ", bytes,
                   " bytes were asked for");
}

void release(void* data) {
  if (data == nullptr) return;
  const std::lock_guard lock(mutex);
  auto first = static_cast<size_t>(static_cast<std::byte*>(data) - memory);
  Heap& heap = heaps[first / kDeviceBytes];
  const auto found = heap.taken.find(first);
  size_t bytes = found->second;
  heap.taken.erase(found);
  const auto next = heap.free.find(first + bytes);
  if (next != heap.free.end()) {
    bytes += next->second;
    heap.free.erase(next);
  }
  auto at = heap.free.lower_bound(first);
  if (at != heap.free.begin() && std::prev(at)->first + std::prev(at)->second == first) {
    std::prev(at)->second += bytes;
  } else {
    heap.free[first] = bytes;
  }
}

size_t free_bytes(c10::DeviceIndex device) {
  const std::lock_guard lock(mutex);
  size_t bytes = 0;
  for (const auto& [offset, size] : heaps[device].free) bytes += size;
  return bytes;
}

void* host_address(const void* data) {
  if (data == nullptr) return nullptr;
  TORCH_CHECK(is_device_memory(data), "this is no memory of the stand-in device");
  return memory + (static_cast<const std::byte*>(data) - memory) + kBytes;
}

void name_faults() {
  errors = dup(STDERR_FILENO);
  struct sigaction action {};
  sigaction(SIGSEGV, nullptr, &action);
  if (action.sa_sigaction == &on_fault) return;
  action.sa_sigaction = &on_fault;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
  sigaction(SIGSEGV, &action, &before);
}

}  // namespace standin
