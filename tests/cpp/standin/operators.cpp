// SPDX-License-Identifier: Apache-2.0
// torch's operators on the stand-in device: what makes, shows and copies tensors is here, and all
// else is done by the CPU's kernels on the same bytes, without copies of what goes in. As on a GPU,
// an operator takes tensors of one device, and of the CPU only numbers, and those that index.
#include <ATen/Context.h>
#include <ATen/EmptyTensor.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/ops/_copy_from.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/as_strided_cpu_dispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/set_cpu_dispatch.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include "memory.hpp"

namespace standin {
namespace {

// The same bytes as a tensor on the CPU. One that has none, or that is written to, may become
// larger: by then it has memory of its own.
at::Tensor host_view(const at::Tensor& tensor, bool written = false) {
  at::TensorMaker maker = at::for_blob(host_address(tensor.const_data_ptr()), tensor.sizes());
  maker.strides(tensor.strides()).options(at::TensorOptions(tensor.scalar_type()));
  if (written) maker.allocator(c10::GetCPUAllocator()).resizeable_storage();
  at::Tensor view = maker.make_tensor();
  if (tensor.is_conj()) view._set_conj(true);
  if (tensor.is_neg()) view._set_neg(true);
  return view;
}

at::Tensor to_device(const at::Tensor& tensor, c10::Device device) {
  const at::TensorOptions options = tensor.options().device(device).pinned_memory(false);
  at::Tensor copy = tensor.is_non_overlapping_and_dense()
                        ? at::empty_strided(tensor.sizes(), tensor.strides(), options)
                        : at::empty(tensor.sizes(), options);
  host_view(copy).copy_(tensor);
  return copy;
}

void check_plain(std::optional<at::Layout> layout, std::optional<bool> pinned) {
  TORCH_CHECK(c10::layout_or_default(layout) == at::kStrided, "the stand-in device has no ",
              *layout, " tensors");
  TORCH_CHECK(!c10::pinned_memory_or_default(pinned), "only dense CPU tensors can be pinned");
}

at::Tensor empty(at::IntArrayRef sizes, std::optional<at::ScalarType> dtype,
                 std::optional<at::Layout> layout, std::optional<at::Device> device,
                 std::optional<bool> pinned, std::optional<at::MemoryFormat> format) {
  check_plain(layout, pinned);
  const c10::DeviceGuard guard(c10::device_or_default(device));
  return at::detail::empty_generic(sizes, c10::GetAllocator(kType),
                                   c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                   c10::dtype_or_default(dtype), format);
}

at::Tensor empty_strided(at::IntArrayRef sizes, at::IntArrayRef strides,
                         std::optional<at::ScalarType> dtype, std::optional<at::Layout> layout,
                         std::optional<at::Device> device, std::optional<bool> pinned) {
  check_plain(layout, pinned);
  const c10::DeviceGuard guard(c10::device_or_default(device));
  return at::detail::empty_strided_generic(sizes, strides, c10::GetAllocator(kType),
                                           c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                           c10::dtype_or_default(dtype));
}

at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool /*non_blocking*/) {
  const auto on_host = [](const at::Tensor& each, bool written) {
    return each.device().type() == kType ? host_view(each, written) : each;
  };
  on_host(to, true).copy_(on_host(from, false));
  return to;
}

const at::Tensor& resize_tensor(const at::Tensor& self, at::IntArrayRef sizes,
                                std::optional<at::MemoryFormat> format) {
  const c10::Storage& storage = self.storage();
  const size_t bytes = at::detail::computeStorageNbytesContiguous(
      sizes, self.itemsize(), static_cast<size_t>(self.storage_offset()));
  if (bytes > storage.nbytes()) {
    at::detail::getPrivateUse1Hooks().resizePrivateUse1Bytes(storage, bytes);
  }
  self.unsafeGetTensorImpl()->set_sizes_contiguous(sizes);
  if (format) self.unsafeGetTensorImpl()->empty_tensor_restride(*format);
  return self;
}

at::Tensor copy_from_and_resize(const at::Tensor& from, const at::Tensor& to) {
  resize_tensor(to, from.sizes(), std::nullopt);
  return copy_from(from, to, false);
}

at::Tensor as_strided(const at::Tensor& self, at::IntArrayRef sizes, at::IntArrayRef strides,
                      std::optional<int64_t> offset) {
  return at::cpu::as_strided(self, sizes, strides, offset);
}

at::Tensor& set_storage(at::Tensor& self, at::Storage source, int64_t offset, at::IntArrayRef sizes,
                        at::IntArrayRef strides) {
  return at::cpu::set_(self, std::move(source), offset, sizes, strides);
}

// Products of bfloat16 and float16 whose sums are float32, which the CPU does not have.
at::Tensor& addmm_out(const at::Tensor& self, const at::Tensor& a, const at::Tensor& b,
                      at::ScalarType dtype, const at::Scalar& beta, const at::Scalar& alpha,
                      at::Tensor& out) {
  return at::addmm_out(out, self.to(dtype), a.to(dtype), b.to(dtype), beta, alpha);
}

// One call of an operator: its arguments as the CPU's kernel takes them, and its results back.
class Call {
 public:
  Call(const c10::OperatorHandle& op, torch::jit::Stack& stack) : op_(op), stack_(stack) {
    const auto arguments = torch::jit::last(stack, op.schema().arguments().size());
    given_.assign(arguments.begin(), arguments.end());
    for (const c10::IValue& each : given_) find_device(each);
  }

  void run() {
    torch::jit::drop(stack_, given_.size());
    for (size_t i = 0; i < given_.size(); ++i) stack_.push_back(on_host(i));
    const std::vector<c10::IValue> hosts(stack_.end() - static_cast<ptrdiff_t>(given_.size()),
                                         stack_.end());
    op_.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), &stack_);
    for (size_t i = 0; i < given_.size(); ++i) {
      if (is_written(i)) take_back(hosts[i], given_[i]);
    }
    const size_t results = op_.schema().returns().size();
    for (size_t i = 0; i < results; ++i) {
      c10::IValue& result = stack_[stack_.size() - results + i];
      result = returned(i, result);
    }
  }

 private:
  const std::string& name() const { return op_.schema().name(); }

  void find_device(const c10::IValue& value) {
    if (device_) return;
    if (value.isTensor() && value.toTensor().defined()) {
      if (value.toTensor().device().type() == kType) device_ = value.toTensor().device();
    } else if (value.isDevice() && value.toDevice().type() == kType) {
      const c10::Device device = value.toDevice();
      device_ = device.has_index() ? device : c10::Device(kType, 0);
    } else if (value.isList()) {
      for (const c10::IValue& each : value.toListRef()) find_device(each);
    }
  }

  bool is_written(size_t argument) const {
    const auto* alias = op_.schema().arguments()[argument].alias_info();
    return alias != nullptr && alias->isWrite();
  }

  at::Tensor tensor_on_host(const at::Tensor& tensor, size_t argument, bool indexes) const {
    if (!tensor.defined()) return tensor;
    if (tensor.device() == device_) return host_view(tensor, is_written(argument));
    const bool number = tensor.is_cpu() && tensor.dim() == 0 && !is_written(argument);
    TORCH_CHECK(number || (tensor.is_cpu() && indexes),
                "Expected all tensors to be on the same device, but found at least two devices, ",
                *device_, " and ", tensor.device(), "! (argument '",
                op_.schema().arguments()[argument].name(), "' of ", name(), ")");
    return tensor;
  }

  c10::IValue on_host(size_t argument) const {
    const c10::IValue& value = given_[argument];
    if (value.isTensor()) return tensor_on_host(value.toTensor(), argument, /*indexes=*/false);
    if (value.isTensorList()) {
      c10::List<at::Tensor> list;
      for (const at::Tensor& each : value.toTensorVector()) {
        list.push_back(tensor_on_host(each, argument, /*indexes=*/false));
      }
      return list;
    }
    if (value.isOptionalTensorList()) {
      c10::List<std::optional<at::Tensor>> list;
      for (const std::optional<at::Tensor>& each : value.toOptionalTensorVector()) {
        list.push_back(each ? std::optional(tensor_on_host(*each, argument, /*indexes=*/true))
                            : std::nullopt);
      }
      return list;
    }
    return value.isDevice() ? c10::IValue(c10::Device(c10::kCPU)) : value;
  }

  // What was written to a tensor that had too little memory, or another shape.
  static void take_back(const at::Tensor& host, const at::Tensor& tensor) {
    if (!tensor.defined()) return;
    const bool same_memory = host.const_data_ptr() == host_address(tensor.const_data_ptr());
    if (same_memory && host.sizes() == tensor.sizes()) return;
    copy_from_and_resize(host, tensor);
  }

  static void take_back(const c10::IValue& host, const c10::IValue& value) {
    if (value.isTensor()) return take_back(host.toTensor(), value.toTensor());
    if (!value.isTensorList()) return;
    const auto hosts = host.toTensorVector(), tensors = value.toTensorVector();
    for (size_t i = 0; i < tensors.size(); ++i) take_back(hosts[i], tensors[i]);
  }

  c10::IValue returned(size_t index, const c10::IValue& result) const {
    const auto* alias = op_.schema().returns()[index].alias_info();
    if (alias != nullptr && alias->isWrite()) {
      for (size_t i = 0; i < given_.size(); ++i) {
        const auto* other = op_.schema().arguments()[i].alias_info();
        if (other != nullptr && *other == *alias) return given_[i];
      }
    }
    TORCH_CHECK_NOT_IMPLEMENTED(alias == nullptr || !result.isTensor(), name(),
                                " shows a tensor's own memory; the stand-in device lacks it");
    if (!device_) return result;
    if (result.isTensor() && result.toTensor().defined()) {
      return to_device(result.toTensor(), *device_);
    }
    if (result.isTensorList()) {
      c10::List<at::Tensor> list;
      for (const at::Tensor& each : result.toTensorVector()) {
        list.push_back(each.defined() ? to_device(each, *device_) : each);
      }
      return list;
    }
    return result;
  }

  const c10::OperatorHandle& op_;
  torch::jit::Stack& stack_;
  std::vector<c10::IValue> given_;
  std::optional<c10::Device> device_;
};

void run_on_host(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  Call(op, *stack).run();
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&run_on_host>());
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("_copy_from", &copy_from);
  m.impl("_copy_from_and_resize", &copy_from_and_resize);
  m.impl("as_strided", &as_strided);
  m.impl("view", &at::native::view);
  m.impl("_reshape_alias", &at::native::_reshape_alias);
  m.impl("unfold", &at::native::unfold);
  m.impl("resize_", &resize_tensor);
  m.impl("set_.source_Tensor", &at::native::set_tensor_);
  m.impl("set_.source_Storage", &at::native::set_);
  m.impl("set_.source_Storage_storage_offset", &set_storage);
  m.impl("addmm.dtype_out", &addmm_out);
}

}  // namespace
}  // namespace standin
