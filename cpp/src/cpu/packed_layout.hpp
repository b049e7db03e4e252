// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <mlcalib/grid.hpp>

#include "../grids.hpp"
#include "../host_device.hpp"
#include "activations.hpp"
#include "kernels/kernels.hpp"

namespace mlcalib::cpu {

inline int64_t tiles_of(const PackedWeight& w) { return divide_up(w.rows, kPackedRows); }

/// The layout of a weight, without its data.
inline PackedWeight layout(int64_t rows, int64_t columns, const GridSpec& spec) {
  constexpr int64_t kAlign = 64;
  PackedWeight w{};
  w.rows = rows;
  w.columns = columns;
  w.width = group_width(spec, columns);
  w.groups = spec.groups(columns);
  w.steps = (w.groups - 1) * divide_up(w.width, kPackedColumns) +
            divide_up(columns - (w.groups - 1) * w.width, kPackedColumns);
  w.bits = spec.bits <= 4 ? 4 : 8;
  w.middle = static_cast<float>(int64_t{1} << (spec.bits - 1));
  w.symmetric = spec.symmetric;
  w.scale = element_of(spec.scale_dtype);
  const int64_t codes = w.steps * kPackedColumns * w.bits / 8 * kPackedRows;
  const int64_t scales =
      w.groups * kPackedRows * static_cast<int64_t>(elementSize(spec.scale_dtype));
  const int64_t zeros = spec.symmetric ? 0 : w.groups * kPackedRows;
  w.scale_offset = codes;  // a multiple of kAlign
  w.zero_offset = w.scale_offset + divide_up(scales, kAlign) * kAlign;
  w.tile_bytes = w.zero_offset + divide_up(zeros, kAlign) * kAlign;
  return w;
}

/// The packed weight; throws ValueError where it is not what the arguments describe.
inline PackedWeight layout_of(const at::Tensor& packed, int64_t rows, int64_t columns,
                              const GridSpec& spec) {
  PackedWeight w = layout(rows, columns, spec);
  TORCH_CHECK_VALUE(
      packed.scalar_type() == at::kByte && packed.is_contiguous() && packed.dim() == 2 &&
          packed.size(0) == divide_up(rows, kPackedRows) && packed.size(1) == w.tile_bytes,
      "the packed weight is ", packed.scalar_type(), " ", packed.sizes(), ", but a weight [", rows,
      ", ", columns, "] of ", spec.bits, " bits in groups of ", spec.group_size, " takes uint8 [",
      divide_up(rows, kPackedRows), ", ", w.tile_bytes,
      "]; give the rows, the spec and the number of columns that it was packed with.");
  w.data = packed.const_data_ptr<uint8_t>();
  return w;
}

}  // namespace mlcalib::cpu
