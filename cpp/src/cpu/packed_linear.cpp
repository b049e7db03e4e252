// SPDX-License-Identifier: Apache-2.0
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cstring>
#include <tuple>

#include "../stubs.hpp"
#include "activations.hpp"
#include "kernels/kernels.hpp"
#include "packed_layout.hpp"

namespace mlcalib {
namespace {

using cpu::kPackedColumns;
using cpu::kPackedRows;
using cpu::layout;
using cpu::layout_of;
using cpu::PackedWeight;
using cpu::tiles_of;

// Where the code of a column lies in a tile's words: its word (of row 0) and its lowest bit.
struct Place {
  int64_t word;
  int64_t bit;
};

Place place(const PackedWeight& w, int64_t column) {
  const int64_t group = column / w.width, in_group = column % w.width;
  const int64_t step = group * divide_up(w.width, kPackedColumns) + in_group / kPackedColumns;
  const int64_t c = in_group % kPackedColumns;
  if (w.bits == 4) return {step * kPackedRows, 4 * (c % 2 * 4 + c / 2)};
  return {(step * 2 + c / 4) * kPackedRows, 8 * (c % 4)};
}

// Calls run(row, the tile's bytes, row in the tile) for every row.
template <class Run>
void for_each_row(const PackedWeight& w, uint8_t* data, const Run& run) {
  at::parallel_for(0, tiles_of(w), 1, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin * kPackedRows; r < std::min(end * kPackedRows, w.rows); ++r) {
      run(r, data + r / kPackedRows * w.tile_bytes, r % kPackedRows);
    }
  });
}

at::Tensor pack_linear_cpu(const at::Tensor& codes, const Grid& grid) {
  const int64_t rows = codes.size(0), columns = codes.size(1);
  const PackedWeight w = layout(rows, columns, grid.spec);
  const at::Tensor packed =
      at::zeros({divide_up(rows, kPackedRows), w.tile_bytes}, codes.options());
  const at::Tensor scale = grid.scale.to(grid.spec.scale_dtype);
  const int64_t size = scale.element_size();
  const auto* scales = static_cast<const uint8_t*>(scale.const_data_ptr());
  const auto* zeros = grid.zero.const_data_ptr<uint8_t>();
  const auto* from = codes.const_data_ptr<uint8_t>();
  const uint32_t mask = (1U << w.bits) - 1;
  for_each_row(w, packed.data_ptr<uint8_t>(), [&](int64_t r, uint8_t* tile, int64_t in_tile) {
    auto* words = reinterpret_cast<uint32_t*>(tile) + in_tile;
    for (int64_t c = 0; c < columns; ++c) {
      const Place at = place(w, c);
      const uint32_t code = from[r * columns + c] - static_cast<uint32_t>(w.middle);
      words[at.word] |= (code & mask) << at.bit;
    }
    for (int64_t g = 0; g < w.groups; ++g) {
      std::memcpy(tile + w.scale_offset + (g * kPackedRows + in_tile) * size,
                  scales + (r * w.groups + g) * size, size);
      if (!w.symmetric) {
        tile[w.zero_offset + g * kPackedRows + in_tile] = zeros[r * w.groups + g];
      }
    }
  });
  return packed;
}

std::tuple<at::Tensor, Grid> unpack_linear_cpu(const at::Tensor& packed, int64_t rows,
                                               int64_t columns, const GridSpec& spec) {
  const PackedWeight w = layout_of(packed, rows, columns, spec);
  const at::Tensor codes = at::empty({rows, columns}, packed.options());
  const at::Tensor scale = at::empty({rows, w.groups}, packed.options().dtype(spec.scale_dtype));
  const at::Tensor zero = at::empty({rows, w.groups}, packed.options());
  const int64_t size = scale.element_size();
  auto* scales = static_cast<uint8_t*>(scale.data_ptr());
  auto* zeros = zero.data_ptr<uint8_t>();
  auto* to = codes.data_ptr<uint8_t>();
  const uint32_t mask = (1U << w.bits) - 1;
  const auto middle = static_cast<uint32_t>(w.middle);
  for_each_row(w, packed.data_ptr<uint8_t>(), [&](int64_t r, uint8_t* tile, int64_t in_tile) {
    const auto* words = reinterpret_cast<const uint32_t*>(tile) + in_tile;
    for (int64_t c = 0; c < columns; ++c) {
      const Place at = place(w, c);
      to[r * columns + c] = static_cast<uint8_t>(((words[at.word] >> at.bit) + middle) & mask);
    }
    for (int64_t g = 0; g < w.groups; ++g) {
      std::memcpy(scales + (r * w.groups + g) * size,
                  tile + w.scale_offset + (g * kPackedRows + in_tile) * size, size);
      zeros[r * w.groups + g] =
          w.symmetric ? middle : tile[w.zero_offset + g * kPackedRows + in_tile];
    }
  });
  return {codes, {scale.to(at::kFloat), zero, spec}};
}

// From so few tokens on, a panel is worth its making.
constexpr int64_t kPanelTokens = 4;
// Codes that are worth a thread of their own.
constexpr int64_t kGrain = 1 << 16;

void multiply_rows(const cpu::Activations& x, const PackedWeight& w, const cpu::PackedOutput& y,
                   float* prepared) {
  const cpu::PackedRowKernels& kernels = *cpu::kernels().packed_row;
  const int64_t grain = divide_up(kGrain, w.columns * kPackedRows);
  kernels.prepare(x, w, prepared);
  at::parallel_for(0, tiles_of(w), grain,
                   [&](int64_t begin, int64_t end) { kernels.row(prepared, w, begin, end, y); });
}

void multiply_blocks(const cpu::Activations& x, const PackedWeight& w, const cpu::PackedOutput& y,
                     float* packed) {
  const cpu::PackedBlockKernels& kernels = *cpu::kernels().packed_blocks;
  const int64_t blocks = divide_up(x.tokens, kernels.tokens);
  at::parallel_for(0, blocks, 1,
                   [&](int64_t begin, int64_t end) { kernels.pack(x, w, begin, end, packed); });
  const int64_t chunks = divide_up(blocks, kernels.chunk);
  at::parallel_for(0, tiles_of(w) * chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = task % chunks * kernels.chunk;
      kernels.blocks(packed, x, w, task / chunks, first, std::min(first + kernels.chunk, blocks),
                     y);
    }
  });
}

at::Tensor packed_linear_cpu(const at::Tensor& x, const at::Tensor& packed, int64_t rows,
                             const GridSpec& spec, const at::Tensor& bias) {
  const at::Tensor from = x.stride(1) == 1 ? x : x.contiguous();
  const int64_t tokens = from.size(0), columns = from.size(1);
  const PackedWeight w = layout_of(packed, rows, columns, spec);
  at::Tensor y = at::empty({tokens, rows}, from.options());
  const void* added = bias.defined() ? bias.const_data_ptr() : nullptr;
  const cpu::Element element = cpu::element_of(from.scalar_type());
  const auto scratch = [&](int64_t count) {
    return at::empty({count}, from.options().dtype(at::kFloat));
  };
  if (tokens < kPanelTokens) {
    const at::Tensor prepared = scratch(w.steps * kPackedColumns + w.groups);
    auto* to = static_cast<char*>(y.data_ptr());
    for (int64_t t = 0; t < tokens; ++t, to += rows * y.element_size()) {
      multiply_rows(cpu::activations(from, t, 1), w, {to, added, element},
                    prepared.data_ptr<float>());
    }
    return y;
  }
  const cpu::PackedBlockKernels& kernels = *cpu::kernels().packed_blocks;
  const at::Tensor blocks = scratch(divide_up(tokens, kernels.tokens) * kernels.floats(w, element));
  multiply_blocks(cpu::activations(from, 0, tokens), w, {y.data_ptr(), added, element},
                  blocks.data_ptr<float>());
  return y;
}

const bool packed_linear_installed = pack_linear_stub.install(at::kCPU, &pack_linear_cpu) &&
                                     unpack_linear_stub.install(at::kCPU, &unpack_linear_cpu) &&
                                     packed_linear_stub.install(at::kCPU, &packed_linear_cpu);

}  // namespace
}  // namespace mlcalib
