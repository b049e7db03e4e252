// SPDX-License-Identifier: Apache-2.0
// The AMX kernel of the Gram once more, on emulated tiles.
#include "amx_emulated_tiles.hpp"
#include "cpu/kernels/gram_amx.cpp"
