// SPDX-License-Identifier: Apache-2.0
#include "reference.hpp"
#include "stubs.hpp"

namespace mlcalib {
namespace {

using reference::expect_error;

struct StubCase {
  const char* kernel;
  void (*call)(c10::DeviceType device);
};

const StubCase kStubs[] = {
    {"gram_update", [](c10::DeviceType d) { gram_update_stub(d, at::Tensor(), at::Tensor()); }},
    {"mirror", [](c10::DeviceType d) { mirror_stub(d, at::Tensor()); }},
    {"fit_grid",
     [](c10::DeviceType d) { fit_grid_stub(d, at::Tensor(), at::Tensor(), GridSpec{}); }},
    {"quantize", [](c10::DeviceType d) { quantize_stub(d, at::Tensor(), Grid{}); }},
    {"dequantize", [](c10::DeviceType d) { dequantize_stub(d, at::Tensor(), Grid{}); }},
    {"gptq", [](c10::DeviceType d) { gptq_stub(d, GptqProblem{}); }},
    {"dot", [](c10::DeviceType d) { dot_stub(d, at::Tensor(), at::Tensor()); }},
    {"pack", [](c10::DeviceType d) { pack_stub(d, at::Tensor(), 4); }},
    {"unpack", [](c10::DeviceType d) { unpack_stub(d, at::Tensor(), 4, 8); }},
};

class StubTest : public testing::TestWithParam<StubCase> {};

TEST_P(StubTest, NamesTheMissingKernelAndDevice) {
  const std::string kernel = std::string("the kernel ") + GetParam().kernel + " ";
  for (const auto& [device, name] :
       {std::pair{at::kMeta, "device meta"}, std::pair{at::kPrivateUse1, "device privateuseone"},
        std::pair{at::kFPGA, "device fpga"}}) {
    expect_error<c10::NotImplementedError>([&] { GetParam().call(device); },
                                           {kernel.c_str(), name});
  }
}

INSTANTIATE_TEST_SUITE_P(Kernels, StubTest, testing::ValuesIn(kStubs),
                         [](const auto& each) { return std::string(each.param.kernel); });

int twice(const int& x) { return 2 * x; }
int thrice(const int& x) { return 3 * x; }

TEST(DeviceStub, CallsTheKernelOfTheDevice) {
  DeviceStub<int(const int&)> stub("multiply");
  EXPECT_TRUE(stub.install(at::kCPU, &twice));
  EXPECT_TRUE(stub.install(at::kCUDA, &thrice));
  EXPECT_EQ(stub(at::kCPU, 7), 14);
  EXPECT_EQ(stub(at::kCUDA, 7), 21);
  expect_error<c10::NotImplementedError>([&] { stub(at::kMeta, 7); }, {"multiply", "meta"});
}

}  // namespace
}  // namespace mlcalib
