// SPDX-License-Identifier: Apache-2.0
// The AMX kernel of packed weights once more, on emulated tiles.
#include "amx_emulated_tiles.hpp"
#include "cpu/kernels/packed_amx.cpp"
