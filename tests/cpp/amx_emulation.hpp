// SPDX-License-Identifier: Apache-2.0
// AMX tiles in software, so that the kernels on them are tested on every machine: the operations of
// Intel's Software Developer's Manual, volume 2 (LDTILECFG, TILELOADD, TILESTORED, TILEZERO,
// TDPBF16PS). What would fault throws std::logic_error. Each thread has its own tiles.
#pragma once

#include <cstdint>

#include "cpu/kernels/kernels.hpp"

namespace mlcalib::amx_emulation {

void load_config(const void* config);  ///< 64 bytes; also clears the tiles
void release();
bool configured();

void load(int tile, const void* from, int64_t stride);
void store(int tile, void* to, int64_t stride);
void zero(int tile);

/// sum += a · b, with pairs of bfloat16 in a's rows and in b's columns.
void dot_bf16(int sum, int a, int b);

}  // namespace mlcalib::amx_emulation

namespace mlcalib::cpu::amx_emulated {

/// kernels/gram_amx.cpp and packed_amx.cpp, compiled with the above.
extern const GramKernels gram_kernels;
extern const PackedBlockKernels packed_block_kernels;

}  // namespace mlcalib::cpu::amx_emulated
