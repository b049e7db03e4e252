// SPDX-License-Identifier: Apache-2.0
// The Gram's matrix product. Both operands are the same activations, packed once: strips of as many
// channels as a vector holds, [strip][step][channel]; a step is one token, or two where bfloat16 is
// multiplied in pairs. A tile's columns are three strips, loaded as vectors; its rows are half a
// strip, broadcast one by one.
#include "element.hpp"
#include "product.hpp"

namespace mlcalib::cpu::MLCALIB_ISA {
namespace {

constexpr int64_t kColumns = kProductColumns;
constexpr int64_t kRows = kProductRows;
static_assert(kGramTile % kColumns == 0 && kGramTile % kRows == 0);

// A step of bfloat16 pairs is two tokens: one 32-bit element holds both of a channel.
inline bool in_pairs(Element element) { return kPairs && element == Element::kBFloat16; }

// A tile's columns (48 × 4 bytes a token) stay near the first-level cache.
int64_t tokens_at_once(Element) { return 256; }

int64_t steps(Element element, int64_t tokens) {
  return in_pairs(element) ? (tokens + 1) / 2 : tokens;
}

template <class T>
void pack_floats(const Activations& x, const T* data, int64_t first, int64_t last, float* packed) {
  for (int64_t strip = first; strip < last; ++strip) {
    const int64_t channel = strip * kLanes;
    const int64_t left = x.channels - channel;
    float* to = packed + strip * x.tokens * kLanes;
    const T* from = data + channel;
    for (int64_t t = 0; t < x.tokens; ++t, to += kLanes, from += x.stride) {
      store(to, load_channels(from, left));
    }
  }
}

void pack_pairs(const Activations& x, int64_t first, int64_t last, uint16_t* packed) {
  const int64_t pairs = (x.tokens + 1) / 2;
  for (int64_t strip = first; strip < last; ++strip) {
    const int64_t channel = strip * kLanes;
    const int64_t left = x.channels - channel < kLanes ? x.channels - channel : kLanes;
    uint16_t* to = packed + strip * pairs * kLanes * 2;
    const uint16_t* from = static_cast<const uint16_t*>(x.data) + channel;
    for (int64_t p = 0; p < pairs; ++p, to += 2 * kLanes, from += 2 * x.stride) {
      const uint16_t* second = 2 * p + 1 < x.tokens ? from + x.stride : nullptr;
      for (int64_t i = 0; i < kLanes; ++i) {
        to[2 * i] = i < left ? from[i] : 0;
        to[2 * i + 1] = i < left && second != nullptr ? second[i] : 0;
      }
    }
  }
}

void pack(const Activations& x, int64_t first, int64_t last, void* packed) {
  if (in_pairs(x.element)) return pack_pairs(x, first, last, static_cast<uint16_t*>(packed));
  with_elements(x.element, x.data, [&](const auto* data) {
    pack_floats(x, data, first, last, static_cast<float*>(packed));
  });
}

inline void add(const Vec (&sum)[kRows][kProductStrips], float* to) {
  for (int64_t r = 0; r < kRows; ++r, to += kGramTile) {
    for (int64_t s = 0; s < kProductStrips; ++s) {
      store(to + s * kLanes, load(to + s * kLanes) + sum[r][s]);
    }
  }
}

template <class Product>
void tiles_of(const float* packed, int64_t count, int64_t group, int64_t first, int64_t last,
              float* sums) {
  const int64_t strip = count * kLanes;
  const float* columns[kProductStrips];
  for (int64_t s = 0; s < kProductStrips; ++s)
    columns[s] = packed + (group * kProductStrips + s) * strip;
  for (int64_t t = first; t < last; ++t) {
    const int64_t row = t * kRows;
    const float* rows = packed + row / kLanes * strip + row % kLanes;
    Vec sum[kRows][kProductStrips] = {};
    multiply<Product>(rows, kLanes, columns, kLanes, count, sum);
    add(sum, sums + gram_index(row, group * kColumns));
  }
}

void tiles(const void* packed, Element element, int64_t count, int64_t /*channels*/, int64_t group,
           int64_t first, int64_t last, float* sums) {
  const float* from = static_cast<const float*>(packed);
#ifdef __AVX512BF16__
  if (in_pairs(element)) return tiles_of<Pairs>(from, count, group, first, last, sums);
#else
  (void)element;
#endif
  tiles_of<Floats>(from, count, group, first, last, sums);
}

}  // namespace

extern const GramKernels gram_kernels;
const GramKernels gram_kernels = {kRows, kColumns, kLanes, &tokens_at_once, &steps, &pack, &tiles};

}  // namespace mlcalib::cpu::MLCALIB_ISA
