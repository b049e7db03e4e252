// SPDX-License-Identifier: Apache-2.0
// What scaling the input channels of a group does to its rounding errors. Compiled without
// contraction, as everything that decides codes.
#include "fit.hpp"

namespace mlcalib::cpu::MLCALIB_ISA {
namespace {

// error = (w·f − Q(w·f)) / f, and sum += Σ_c square[c] · error_c².
void round_scaled(const ScaledGroup& g, const GridShape& shape) {
  for (int64_t c = 0; c < g.columns; ++c) {
    for (int64_t v = c * kRowTile; v < (c + 1) * kRowTile; v += kLanes) {
      store(g.scaled + v, load(g.weight + v) * g.factor[c]);
    }
  }
  float scale[kRowTile], zero[kRowTile];
  fit_group({.weight = g.scaled,
             .importance = g.importance,
             .gram = nullptr,
             .gram_stride = 0,
             .scratch = nullptr,
             .columns = g.columns},
            shape, scale, zero);
  with_numbers<Vec>(shape, [&](auto numbers) {
    for (int64_t v = 0; v < kRowTile; v += kLanes) {
      const Level<Vec> level{load(scale + v), load(zero + v)};
      Vec sum = load(g.sum + v);
      for (int64_t c = 0; c < g.columns; ++c) {
        const Vec w = load(g.scaled + c * kRowTile + v);
        const Vec error = scaled_error(w, level, g.inverse[c], numbers);
        sum += error * error * g.square[c];
        store(g.error + c * g.error_stride + v, error);
      }
      store(g.sum + v, sum);
    }
  });
}

}  // namespace

extern const AwqKernels awq_kernels;
const AwqKernels awq_kernels = {&round_scaled};

}  // namespace mlcalib::cpu::MLCALIB_ISA
