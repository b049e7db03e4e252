// SPDX-License-Identifier: Apache-2.0
// The compiler's intrinsics for tiles, emulated: for kernels that are included after this.
#pragma once

#include "amx_emulation.hpp"

#ifdef __x86_64__
#include <immintrin.h>
// Macros where they are the compiler's.
#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps
#endif

// Found before those of the compiler, which are global.
namespace mlcalib::cpu::amx_emulated {
namespace {

void _tile_loadconfig(const void* config) { amx_emulation::load_config(config); }
void _tile_release() { amx_emulation::release(); }
void _tile_loadd(int tile, const void* from, int64_t stride) {
  amx_emulation::load(tile, from, stride);
}
void _tile_stored(int tile, void* to, int64_t stride) { amx_emulation::store(tile, to, stride); }
void _tile_zero(int tile) { amx_emulation::zero(tile); }
void _tile_dpbf16ps(int sum, int a, int b) { amx_emulation::dot_bf16(sum, a, b); }

}  // namespace
}  // namespace mlcalib::cpu::amx_emulated

#define MLCALIB_AMX_EMULATION
#define MLCALIB_ISA amx_emulated
#define MLCALIB_VECTOR_BYTES 64
