// SPDX-License-Identifier: Apache-2.0
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cstring>
#include <mlcalib/packing.hpp>
#include <random>
#include <tuple>

#include "reference.hpp"

namespace mlcalib {
namespace {

using reference::expect_error;
using reference::same_bits;

at::Tensor random_codes(int64_t rows, int64_t columns, int64_t bits) {
  std::mt19937 engine(static_cast<uint32_t>(bits));
  at::Tensor codes = at::empty({rows, columns}, at::kByte);
  uint8_t* data = codes.data_ptr<uint8_t>();
  std::generate(data, data + codes.numel(),
                [&] { return static_cast<uint8_t>(engine() & ((1U << bits) - 1)); });
  return codes;
}

// Bit b of code c of a row is bit (c · bits + b) of the row's stream.
at::Tensor pack_bit_by_bit(const at::Tensor& codes, int64_t bits) {
  const int64_t rows = codes.size(0), columns = codes.size(1), words = (columns * bits + 31) / 32;
  std::vector<uint32_t> stream(rows * words);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = 0; i < columns * bits; ++i) {
      const uint32_t code = codes.const_data_ptr<uint8_t>()[r * columns + i / bits];
      stream[r * words + i / 32] |= ((code >> (i % bits)) & 1U) << (i % 32);
    }
  }
  at::Tensor packed = at::empty({rows, words}, at::kInt);
  std::memcpy(packed.data_ptr<int32_t>(), stream.data(), packed.nbytes());
  return packed;
}

class PackingTest : public testing::TestWithParam<std::tuple<int64_t, int64_t>> {};

TEST_P(PackingTest, MatchesABitLoopAndComesBack) {
  const auto [bits, columns] = GetParam();
  const at::Tensor codes = random_codes(37, columns, bits);
  const at::Tensor packed = pack(codes, bits);
  EXPECT_TRUE(same_bits(packed, pack_bit_by_bit(codes, bits)));
  EXPECT_TRUE(same_bits(unpack(packed, bits, columns), codes));
  EXPECT_TRUE(same_bits(pack(codes.t().contiguous().t(), bits), packed));
  EXPECT_TRUE(same_bits(unpack(packed.t().contiguous().t(), bits, columns), codes));
}

INSTANTIATE_TEST_SUITE_P(Shapes, PackingTest,
                         testing::Combine(testing::Range<int64_t>(2, 9),
                                          testing::Values<int64_t>(1, 7, 31, 32, 33, 97, 256)),
                         [](const auto& each) {
                           return "Bits" + std::to_string(std::get<0>(each.param)) + "Columns" +
                                  std::to_string(std::get<1>(each.param));
                         });

TEST(Packing, LowestBitsFirst) {
  at::Tensor codes = at::zeros({1, 9}, at::kByte);
  codes[0][0] = 0x1;
  codes[0][1] = 0xf;
  codes[0][7] = 0x8;
  codes[0][8] = 0x5;
  const at::Tensor packed = pack(codes, 4);
  ASSERT_EQ(packed.sizes(), at::IntArrayRef({1, 2}));
  EXPECT_EQ(static_cast<uint32_t>(packed.const_data_ptr<int32_t>()[0]), 0x800000f1U);
  EXPECT_EQ(packed.const_data_ptr<int32_t>()[1], 0x5);
}

TEST(Packing, NothingPacksToNothing) {
  EXPECT_EQ(pack(at::zeros({0, 5}, at::kByte), 4).sizes(), at::IntArrayRef({0, 1}));
  EXPECT_EQ(pack(at::zeros({5, 0}, at::kByte), 4).sizes(), at::IntArrayRef({5, 0}));
  EXPECT_EQ(unpack(at::zeros({5, 0}, at::kInt), 3, 0).sizes(), at::IntArrayRef({5, 0}));
}

TEST(PackingErrors, NameWhatWasGivenAndExpected) {
  const at::Tensor codes = random_codes(3, 10, 4);
  for (const int64_t bits : {1, 9}) {
    const std::string given = "bits is " + std::to_string(bits);
    expect_error<c10::ValueError>([&] { pack(codes, bits); }, {given.c_str(), "2 to 8"});
    expect_error<c10::ValueError>([&] { unpack(pack(codes, 4), bits, 10); }, {given.c_str()});
  }
  expect_error<c10::ValueError>(
      [] {
        pack(at::full({2, 3}, 8, at::kByte), 3);
      },
      {"codes go up to 8", "3 bits", "at most 7"});
  expect_error<c10::ValueError>([&] { pack(codes[0], 4); }, {"codes have shape [10]"});
  expect_error<c10::TypeError>([&] { pack(codes.to(at::kInt), 4); }, {"codes are Int", "uint8"});
  const at::Tensor packed = pack(codes, 4);
  expect_error<c10::TypeError>([&] { unpack(packed.to(at::kLong), 4, 10); }, {"Long", "int32"});
  expect_error<c10::ValueError>([&] { unpack(packed, 4, 17); },
                                {"[3, 2]", "[rows, 3]", "17 columns"});
  expect_error<c10::ValueError>([&] { unpack(packed, 4, -1); }, {"-1 columns"});
}

}  // namespace
}  // namespace mlcalib
