// SPDX-License-Identifier: Apache-2.0
// The product of many tokens and packed weights on AMX. One instruction adds the products of 16
// tokens and 16 rows over 32 columns, a slice, to a tile of sums. Four tiles of sums (32 × 32, a
// block of tokens and a tile of the weight), two of tokens and two of rows fill the eight
// registers.
//
// Weights are code − zero, whole numbers below 256 and so exact in bfloat16; a panel of them, pairs
// of columns as tiles take them, is made once for `kChunk` blocks. Sums of a group are scaled when
// its panel ends. bfloat16 activations are multiplied as they are; fp16 and fp32 are two and three
// bfloat16 terms, exactly, so that products are exact for every type and only the sums round (in
// fp32). Terms below 2^-126 count as zero, as do all denormals on AMX, and an infinite fp16 or fp32
// gives NaN.
#include "amx_terms.hpp"
#include "amx_tiles.hpp"
#include "packed_panel.hpp"

namespace mlcalib::cpu::MLCALIB_ISA {
namespace {

constexpr int64_t kTokens = 2 * kTileRows;
constexpr int64_t kSlice = 32;  // columns
constexpr int64_t kSliceSteps = kSlice / kPackedColumns;
constexpr int64_t kSlicePairs = kSlice / 2;
constexpr int64_t kBlockBytes = 2 * kTileBytes;  // of one term and slice of a block's tokens
constexpr int64_t kChunk = 16;                   // results take 64 KiB of the second-level cache
constexpr int64_t kPanelSlices = 8;              // 16 KiB of the first

static_assert(kLanes == kTileRows);                         // a vector is a row of a tile
static_assert(kRows == kPackedRows);                        // a panel has all rows of a tile
static_assert(kSlicePairs == kTileRows);                    // a tile of rows is a slice deep
static_assert(kSlice * sizeof(uint16_t) == kTileRowBytes);  // and so is one of tokens

inline int64_t slices_of(int64_t columns) { return divide_up(columns, kSlice); }

// Groups are padded to whole slices.
inline int64_t slices_of(const PackedWeight& w) {
  return (w.groups - 1) * slices_of(w.width) + slices_of(group_columns(w, w.groups - 1));
}

// ---- Packing: [block][slice][term][half of the tokens][token][column] ----

int64_t block_floats(const PackedWeight& w, Element element) {
  return slices_of(w) * terms_of(element) * kBlockBytes / static_cast<int64_t>(sizeof(float));
}

// Sixteen columns of a token, to each of its terms. The last term has no more than the eight digits
// of a bfloat16, so it is cut, which leaves every NaN one.
template <int kTerms>
inline void pack_columns(Vec x, char* to) {
  using Halves = uint16_t __attribute__((vector_size(MLCALIB_VECTOR_BYTES / 2)));
#pragma GCC unroll 3
  for (int term = 0; term < kTerms; ++term, to += kBlockBytes) {
    const Bits bits = term == kTerms - 1 ? to_bits(x) : round_to_bfloat16(x);
    const Halves upper = __builtin_convertvector(bits >> 16, Halves);
    __builtin_memcpy(to, &upper, sizeof upper);
    x -= reinterpret_cast<Vec>(bits);
  }
}

template <int kTerms, class T>
void pack_token(const T* x, const PackedWeight& w, char* to) {
  for (int64_t g = 0; g < w.groups; ++g) {
    const int64_t count = group_columns(w, g);
    for (int64_t c = 0; c < slices_of(count) * kSlice; c += kSlice, to += kTerms * kBlockBytes) {
      pack_columns<kTerms>(c < count ? load_channels(x + c, count - c) : Vec{}, to);
      const int64_t next = c + kLanes;
      pack_columns<kTerms>(next < count ? load_channels(x + next, count - next) : Vec{},
                           to + kTileRowBytes / 2);
    }
    x += count;
  }
}

template <Element element, class T>
void pack_blocks(const Activations& x, const PackedWeight& w, int64_t first, int64_t last,
                 float* packed) {
  const T* from = static_cast<const T*>(x.data);
  for (int64_t block = first; block < last; ++block) {
    char* to = reinterpret_cast<char*>(packed + block * block_floats(w, element));
    for (int64_t t = 0; t < kTokens; ++t) {
      // Tokens beyond the last repeat it; their products are not written.
      const int64_t token = min_of(block * kTokens + t, x.tokens - 1);
      pack_token<terms_of(element)>(from + token * x.stride, w, to + t * kTileRowBytes);
    }
  }
}

void pack(const Activations& x, const PackedWeight& w, int64_t first, int64_t last, float* packed) {
  switch (x.element) {
    case Element::kFloat:
      return pack_blocks<Element::kFloat, float>(x, w, first, last, packed);
    case Element::kBFloat16:
      return pack_blocks<Element::kBFloat16, uint16_t>(x, w, first, last, packed);
    case Element::kHalf:
      return pack_blocks<Element::kHalf, _Float16>(x, w, first, last, packed);
  }
}

// ---- Products. Tiles 0 to 3 hold sums, 4 and 5 tokens, 6 and 7 rows ----

constexpr int64_t kSumStride = kRows * sizeof(float);
constexpr int64_t kPanelSlice = kSlicePairs * kRows;  // floats

template <int kTerms>
inline void multiply(const char* x, const float* panel, int64_t slices, float* sums) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t s = 0; s < slices; ++s, panel += kPanelSlice) {
    _tile_loadd(6, panel, kSumStride);
    _tile_loadd(7, panel + kLanes, kSumStride);
    for (int term = 0; term < kTerms; ++term, x += kBlockBytes) {
      _tile_loadd(4, x, kTileRowBytes);
      _tile_loadd(5, x + kTileBytes, kTileRowBytes);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, sums, kSumStride);
  _tile_stored(1, sums + kLanes, kSumStride);
  _tile_stored(2, sums + kTileRows * kRows, kSumStride);
  _tile_stored(3, sums + kTileRows * kRows + kLanes, kSumStride);
}

// Slices [first, first + count) of group g's steps, which begin at `step`.
inline void fill_panel(const PackedWeight& w, const uint8_t* tile, int64_t g, int64_t step,
                       int64_t first, int64_t count, float* panel) {
  const int64_t begin = step + first * kSliceSteps;
  const int64_t end = min_of(begin + count * kSliceSteps, step + steps_of(group_columns(w, g)));
  for (int64_t v = 0; v < kVectors; ++v) {
    fill<true>(w, tile, g, v * kLanes, begin, end, panel + v * kLanes);
  }
  // The activations there are zero, which no NaN may meet.
  const int64_t filled = (end - begin) * (kPackedColumns / 2) * kRows;
  __builtin_memset(panel + filled, 0, (count * kPanelSlice - filled) * sizeof(float));
}

template <int kTerms>
void blocks_of(const float* packed, int64_t block_size, const PackedWeight& w, const uint8_t* tile,
               int64_t first, int64_t last, float* result) {
  alignas(64) float panel[kPanelSlices * kPanelSlice];
  alignas(64) float sums[kTokens * kRows];
  int64_t step = 0, slice = 0;
  for (int64_t g = 0; g < w.groups; ++g) {
    const Vec scale[kVectors] = {load_scale(w, tile, g, 0), load_scale(w, tile, g, kLanes)};
    const int64_t slices = slices_of(group_columns(w, g));
    for (int64_t s = 0; s < slices; s += kPanelSlices) {
      const int64_t count = min_of(kPanelSlices, slices - s);
      fill_panel(w, tile, g, step, s, count, panel);
      for (int64_t b = first; b < last; ++b) {
        const char* x = reinterpret_cast<const char*>(packed + b * block_size) +
                        (slice + s) * kTerms * kBlockBytes;
        multiply<kTerms>(x, panel, count, sums);
        float* to = result + (b - first) * kTokens * kRows;
        for (int64_t i = 0; i < kTokens * kRows; i += kRows) {
          for (int64_t v = 0; v < kVectors; ++v) {
            const int64_t at = i + v * kLanes;
            store(to + at, load(to + at) + load(sums + at) * scale[v]);
          }
        }
      }
    }
    step += steps_of(group_columns(w, g));
    slice += slices;
  }
}

void blocks(const float* packed, const Activations& x, const PackedWeight& w, int64_t tile,
            int64_t first, int64_t last, const PackedOutput& y) {
  alignas(64) float result[kChunk * kTokens * kRows];
  __builtin_memset(result, 0, (last - first) * kTokens * kRows * sizeof(float));
  const uint8_t* codes = w.data + tile * w.tile_bytes;
  const int64_t size = block_floats(w, x.element);
  _tile_loadconfig(&kFullTiles);
  switch (x.element) {
    case Element::kFloat:
      blocks_of<terms_of(Element::kFloat)>(packed, size, w, codes, first, last, result);
      break;
    case Element::kBFloat16:
      blocks_of<terms_of(Element::kBFloat16)>(packed, size, w, codes, first, last, result);
      break;
    case Element::kHalf:
      blocks_of<terms_of(Element::kHalf)>(packed, size, w, codes, first, last, result);
      break;
  }
  _tile_release();
  write_tokens(result, x, w, tile, first * kTokens, last * kTokens, y);
}

}  // namespace

extern const PackedBlockKernels packed_block_kernels;
const PackedBlockKernels packed_block_kernels = {kTokens, kChunk, &block_floats, &pack, &blocks};

}  // namespace mlcalib::cpu::MLCALIB_ISA
