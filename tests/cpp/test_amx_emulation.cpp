// SPDX-License-Identifier: Apache-2.0
// The emulated tiles themselves: what the tests of the kernel on them rest on.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <initializer_list>
#include <stdexcept>

#include "amx_emulation.hpp"

namespace mlcalib::amx_emulation {
namespace {

struct Config {
  uint8_t bytes[64] = {1};

  Config& tile(int tile, int rows, int row_bytes) {
    bytes[16 + 2 * tile] = row_bytes;
    bytes[48 + tile] = rows;
    return *this;
  }
};

// The bfloat16 of the value, for values that are one.
uint16_t bfloat16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  EXPECT_EQ(bits & 0xffff, 0U);
  return bits >> 16;
}

struct Pair {
  float even, odd;
};

class AmxEmulationTest : public testing::Test {
 protected:
  void TearDown() override { release(); }
};

// sum + Σ x·1 in one entry.
float dot(float sum, std::initializer_list<Pair> x, Pair y = {1, 1}) {
  const int count = static_cast<int>(x.size());
  load_config(Config().tile(0, 1, 4).tile(1, 1, 4 * count).tile(2, count, 4).bytes);
  uint16_t left[32], right[32];
  int i = 0;
  for (const Pair& each : x) {
    left[2 * i] = bfloat16(each.even);
    left[2 * i + 1] = bfloat16(each.odd);
    right[2 * i] = bfloat16(y.even);
    right[2 * i + 1] = bfloat16(y.odd);
    ++i;
  }
  load(0, &sum, 4);
  load(1, left, 4 * count);
  load(2, right, 4);
  dot_bf16(0, 1, 2);
  store(0, &sum, 4);
  return sum;
}

TEST_F(AmxEmulationTest, RowsMeetColumns) {
  load_config(Config().tile(0, 2, 8).tile(1, 2, 4).tile(2, 1, 8).bytes);
  const uint16_t left[2][2] = {{bfloat16(1), bfloat16(2)}, {bfloat16(3), bfloat16(4)}};
  const uint16_t right[2][2] = {{bfloat16(5), bfloat16(6)}, {bfloat16(7), bfloat16(8)}};
  float sum[2][2] = {{100, 200}, {300, 400}};
  load(0, sum, 8);
  load(1, left, 4);
  load(2, right, 8);
  dot_bf16(0, 1, 2);
  store(0, sum, 8);
  EXPECT_EQ(sum[0][0], 100 + 1 * 5 + 2 * 6);
  EXPECT_EQ(sum[0][1], 200 + 1 * 7 + 2 * 8);
  EXPECT_EQ(sum[1][0], 300 + 3 * 5 + 4 * 6);
  EXPECT_EQ(sum[1][1], 400 + 3 * 7 + 4 * 8);
}

// 2^24 + 1 rounds to 2^24, 2^24 + 2 does not.
TEST_F(AmxEmulationTest, EvenAndOddAreAddedBeforeTheSum) {
  EXPECT_EQ(dot(0x1p24F, {{1, 1}}), 0x1p24F + 2);
  EXPECT_EQ(dot(0x1p24F, {{1, 0}}), 0x1p24F);
}

TEST_F(AmxEmulationTest, EvenProductsAreAddedOneAfterAnother) {
  EXPECT_EQ(dot(0, {{0x1p24F, 0}, {1, 0}, {1, 0}}), 0x1p24F);
  EXPECT_EQ(dot(0, {{1, 0}, {1, 0}, {0x1p24F, 0}}), 0x1p24F + 2);
  EXPECT_EQ(dot(0, {{0x1p24F, 1}, {0, 1}}), 0x1p24F + 2);
}

TEST_F(AmxEmulationTest, DenormalsAreZero) {
  EXPECT_EQ(dot(0, {{0x1p-127F, 0}}, {0x1p100F, 0}), 0);  // in the tiles multiplied
  EXPECT_EQ(dot(0, {{0x1p-126F, 0}}, {0x1p100F, 0}), 0x1p-26F);
  EXPECT_EQ(dot(0, {{0x1p-64F, 0}}, {0x1p-64F, 0}), 0);    // in the result
  EXPECT_EQ(dot(0x1p-127F, {{0x1p-126F, 0}}), 0x1p-126F);  // in the sum
  EXPECT_TRUE(std::signbit(dot(-0.0F, {{-0x1p-64F, -0x1p-64F}}, {0x1p-64F, 0x1p-64F})));
}

TEST_F(AmxEmulationTest, LoadingClearsWhatLiesBeyond) {
  const uint8_t ones[1024] = {1, 1, 1, 1, 1, 1, 1, 1};
  load_config(Config().tile(0, 16, 64).bytes);
  load(0, ones, 64);
  zero(0);
  uint8_t stored[1024];
  store(0, stored, 64);
  for (const uint8_t each : stored) ASSERT_EQ(each, 0);
}

TEST_F(AmxEmulationTest, WhatWouldFaultThrows) {
  uint8_t memory[1024] = {};
  EXPECT_THROW(load(0, memory, 64), std::logic_error);  // not configured
  load_config(Config().tile(0, 16, 64).tile(1, 16, 64).tile(2, 8, 64).bytes);
  EXPECT_TRUE(configured());
  EXPECT_THROW(load(3, memory, 64), std::logic_error);
  EXPECT_THROW(load(8, memory, 64), std::logic_error);
  EXPECT_THROW(dot_bf16(0, 0, 1), std::logic_error);
  EXPECT_THROW(dot_bf16(0, 1, 2), std::logic_error);
  release();
  EXPECT_FALSE(configured());
  EXPECT_THROW(store(0, memory, 64), std::logic_error);

  EXPECT_THROW(load_config(Config().tile(0, 17, 64).bytes), std::logic_error);
  EXPECT_THROW(load_config(Config().tile(0, 16, 65).bytes), std::logic_error);
  EXPECT_THROW(load_config(Config().tile(0, 16, 0).bytes), std::logic_error);
  EXPECT_THROW(load_config(Config().tile(8, 16, 64).bytes), std::logic_error);
  Config config;
  config.bytes[0] = 2;
  EXPECT_THROW(load_config(config.bytes), std::logic_error);
  config.bytes[0] = 1;
  config.bytes[5] = 1;
  EXPECT_THROW(load_config(config.bytes), std::logic_error);
}

}  // namespace
}  // namespace mlcalib::amx_emulation
