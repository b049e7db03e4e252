// SPDX-License-Identifier: Apache-2.0
#include <ATen/ops/zeros.h>

#include <mlcalib/packing.hpp>
#include <mlcalib/rtn.hpp>
#include <mlcalib/statistic.hpp>

#include "reference.hpp"
#include "stubs.hpp"

namespace mlcalib {
namespace {

using reference::expect_error;

struct StubCase : reference::Named {
  void (*call)(c10::DeviceType device);
};

const StubCase kStubs[] = {
    {"piece_tokens", [](c10::DeviceType d) { piece_tokens_stub(d, at::Tensor()); }},
    {"gram_update", [](c10::DeviceType d) { gram_update_stub(d, at::Tensor(), at::Tensor()); }},
    {"count_nonfinite",
     [](c10::DeviceType d) { count_nonfinite_stub(d, at::Tensor(), at::Tensor()); }},
    {"gram_sums", [](c10::DeviceType d) { gram_sums_stub(d, 4, at::kMeta); }},
    {"gram_pack", [](c10::DeviceType d) { gram_pack_stub(d, at::Tensor()); }},
    {"gram_unpack", [](c10::DeviceType d) { gram_unpack_stub(d, at::Tensor(), 4); }},
    {"gram_losses", [](c10::DeviceType d) { gram_losses_stub(d, at::Tensor(), {}); }},
    {"deviation_update",
     [](c10::DeviceType d) { deviation_update_stub(d, at::Tensor(), at::Tensor(), at::Tensor()); }},
    {"fit_grid",
     [](c10::DeviceType d) {
       fit_grid_stub(d, at::Tensor(), at::Tensor(), at::Tensor(), GridSpec{});
     }},
    {"moments_update",
     [](c10::DeviceType d) {
       moments_update_stub(d, at::Tensor(), at::Tensor(), at::Tensor(), at::Tensor());
     }},
    {"range_update",
     [](c10::DeviceType d) { range_update_stub(d, at::Tensor(), at::Tensor(), at::Tensor()); }},
    {"awq_scores", [](c10::DeviceType d) { awq_scores_stub(d, AwqProblem{}); }},
    {"quantize", [](c10::DeviceType d) { quantize_stub(d, at::Tensor(), Grid{}); }},
    {"dequantize", [](c10::DeviceType d) { dequantize_stub(d, at::Tensor(), Grid{}); }},
    {"factorize", [](c10::DeviceType d) { factorize_stub(d, at::Tensor(), at::Tensor(), 0.01); }},
    {"gptq", [](c10::DeviceType d) { gptq_stub(d, GptqProblem{}); }},
    {"dot", [](c10::DeviceType d) { dot_stub(d, at::Tensor(), at::Tensor()); }},
    {"pack", [](c10::DeviceType d) { pack_stub(d, at::Tensor(), 4); }},
    {"unpack", [](c10::DeviceType d) { unpack_stub(d, at::Tensor(), 4, 8); }},
};

class StubTest : public testing::TestWithParam<StubCase> {};

TEST_P(StubTest, NamesTheMissingKernelAndDevice) {
  const std::string kernel = std::string("the kernel ") + GetParam().name + " ";
  for (const auto& each :
       {std::pair{at::kMeta, "device meta"}, std::pair{at::kPrivateUse1, "device privateuseone"},
        std::pair{at::kFPGA, "device fpga"}}) {
    expect_error<c10::NotImplementedError>([&] { GetParam().call(each.first); },
                                           {kernel.c_str(), each.second});
  }
}

INSTANTIATE_TEST_SUITE_P(Kernels, StubTest, testing::ValuesIn(kStubs),
                         reference::name_of<StubCase>);

// The fronts come to the kernel: nothing before it needs values that a meta tensor lacks.
TEST(Fronts, NameTheKernelThatTheDeviceLacks) {
  const at::Tensor weight = at::zeros({4, 64}, at::TensorOptions(at::kFloat).device(at::kMeta));
  const at::Tensor codes = weight.to(at::kByte);
  const Grid grid{weight.narrow(1, 0, 2), codes.narrow(1, 0, 2), {.group_size = 32}};
  const auto expect = [](const char* kernel, const std::function<void()>& run) {
    expect_error<c10::NotImplementedError>(run, {kernel, "device meta"});
  };
  expect("fit_grid", [&] { fit_grid(weight, {}); });
  expect("fit_grid", [&] { rtn(weight, {}); });
  expect("gptq", [&] { gptq(weight, reference::random_gram(64, 1)); });
  expect("quantize", [&] { quantize(weight, grid); });
  expect("dequantize", [&] { dequantize(codes, grid); });
  expect("pack", [&] { pack(codes, 4); });
  expect("unpack", [&] { unpack(codes.narrow(1, 0, 8).to(at::kInt), 4, 64); });
  const std::unique_ptr<Statistic> statistic = make_statistic("gram", 64);
  expect("gram_sums", [&] { statistic->update(weight); });
  EXPECT_EQ(statistic->tokens(), 0);
}

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
