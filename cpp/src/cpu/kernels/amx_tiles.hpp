// SPDX-License-Identifier: Apache-2.0
// The tile registers: the compiler's _tile_* intrinsics, where the tests have not put an emulation
// of them before this (tests/cpp/gram_amx_emulated.cpp).
#pragma once

#include <cstdint>

#ifndef MLCALIB_AMX_EMULATION
#include <immintrin.h>
#endif

namespace mlcalib::cpu::MLCALIB_ISA {
namespace {

/// What _tile_loadconfig reads: the processor's own layout.
struct alignas(64) TileConfig {
  uint8_t palette;
  uint8_t start_row;
  uint8_t reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};
static_assert(sizeof(TileConfig) == 64);

/// All eight tiles are 16 rows of 64 bytes.
constexpr TileConfig kFullTiles = {
    1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
constexpr int64_t kTileRows = 16;
constexpr int64_t kTileRowBytes = 64;
constexpr int64_t kTileBytes = kTileRows * kTileRowBytes;

}  // namespace
}  // namespace mlcalib::cpu::MLCALIB_ISA
