// SPDX-License-Identifier: Apache-2.0
// The Gram's matrix product on AMX. One instruction adds the products of 16 × 16 channels over 32
// tokens, a slice, to a tile of sums. Four tiles of sums (32 × 32 channels, a block), two of rows
// and two of columns fill the eight registers: four products for four loads.
//
// Both operands are packed, once: the columns as pairs of tokens, [pair][channel], and the rows as
// their transpose, made in registers while the pairs are in the first-level cache. Making it at
// each use would write half as much, but each tile of rows is used for as many groups as lie to its
// right, and 64 shuffles at every one of them cost more than one more write.
//
// bfloat16 is multiplied as it is: products are exact. Other types are sums of bfloat16 terms:
//   fp16  two, exactly; all four products: as exact as bfloat16.
//   fp32  three, exactly; the six largest of nine products: those left out are at most
//         2^-24 |x_i x_j|. Terms below 2^-126 count as zero, as do all denormals on AMX.
// Sums: an instruction adds the even and the odd tokens of its slice in fp32 from zero, then both
// to the tile. Over the T tokens that are packed at a time the error is at most (16 + T/32 ·
// products) · 2^-24 · Σ |x_i x_j|, 1.02 times that where there are several terms.
//
// An AMX core does 1,024 operations a cycle, its AVX-512 units 64 in fp32: even with six products
// the peak is 2.7 times as high, with four 4 times. Take off a tenth for the lower clock and a
// tenth for packing three terms, and fp32 is still above twice the rate.
#include "amx_terms.hpp"
#include "amx_tiles.hpp"

namespace mlcalib::cpu::MLCALIB_ISA {
namespace {

constexpr int64_t kSlice = 32;  // tokens
constexpr int64_t kBlock = 32;  // channels
constexpr int64_t kBlocks = 3;  // side by side: the rows are read once for all of them
constexpr int64_t kColumns = kBlocks * kBlock;
constexpr int64_t kBlockBytes = 2 * kTileBytes;  // of one term and slice
constexpr int64_t kBlockSums = kBlock * kBlock;
static_assert(kGramTile % kBlock == 0);

// Rows and columns of a block over as many slices as a chunk has take 16 KiB each. With the sums of
// a block this fits the first-level cache, where the rows stay for all blocks of a row tile.
constexpr int64_t kChunk = 8;  // slices · terms

static_assert(kLanes == kTileRows);  // a vector is a row of a tile

inline int64_t slices_of(int64_t tokens) { return divide_up(tokens, kSlice); }

// A tile's sums are read and written once for all tokens that are packed at a time, so these are
// many; the packed copies take 4 KiB a channel, whatever the type.
int64_t tokens_at_once(Element element) { return 1024 / terms_of(element) / kSlice * kSlice; }

// Both operands, 16 pairs of tokens a slice.
int64_t steps(Element element, int64_t tokens) {
  return 2 * terms_of(element) * slices_of(tokens) * (kSlice / 2);
}

// ---- Packing: [strip][rows, columns][slice][term][half of the strip][tile] ----

using Longs = uint64_t __attribute__((vector_size(MLCALIB_VECTOR_BYTES)));

// Pairs of a token and the next for 16 channels, one row of each term's tile. The last term has no
// more than the eight digits of a bfloat16, so it is cut, which leaves every NaN one.
template <int kTerms>
inline void pack_pair(Vec even, Vec odd, char* to) {
#pragma GCC unroll 3
  for (int term = 0; term < kTerms; ++term, to += kBlockBytes) {
    const bool last = term == kTerms - 1;
    const Bits first = last ? to_bits(even) : round_to_bfloat16(even);
    const Bits second = last ? to_bits(odd) & 0xffff0000 : round_to_bfloat16(odd);
    const Bits pair = (first >> 16) | second;
    __builtin_memcpy(to, &pair, sizeof pair);
    if (last) break;
    even -= reinterpret_cast<Vec>(first);
    odd -= reinterpret_cast<Vec>(second);
  }
}

// Within each quarter of two vectors: their lanes 0 and 1, or 2 and 3, alternating.
inline Bits zip_low(Bits a, Bits b) {
  return __builtin_shufflevector(a, b, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29);
}
inline Bits zip_high(Bits a, Bits b) {
  return __builtin_shufflevector(a, b, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
}

// Within each quarter: the first or the second halves.
inline Bits join_low(Bits a, Bits b) {
  return reinterpret_cast<Bits>(__builtin_shufflevector(
      reinterpret_cast<Longs>(a), reinterpret_cast<Longs>(b), 0, 8, 2, 10, 4, 12, 6, 14));
}
inline Bits join_high(Bits a, Bits b) {
  return reinterpret_cast<Bits>(__builtin_shufflevector(
      reinterpret_cast<Longs>(a), reinterpret_cast<Longs>(b), 1, 9, 3, 11, 5, 13, 7, 15));
}

// Quarters `first` and `second` of a, then of b.
template <int first, int second>
inline Bits quarters(Bits a, Bits b) {
  return reinterpret_cast<Bits>(__builtin_shufflevector(
      reinterpret_cast<Longs>(a), reinterpret_cast<Longs>(b), 2 * first, 2 * first + 1, 2 * second,
      2 * second + 1, 2 * first + 8, 2 * first + 9, 2 * second + 8, 2 * second + 9));
}

// A tile of 16 × 16 pairs, transposed: in each quarter of four rows, then the quarters.
inline void transpose(const char* from, char* to) {
  Bits part[4][4];  // [four rows][channel of a quarter]
#pragma GCC unroll 4
  for (int64_t i = 0; i < 4; ++i) {
    Bits row[4];
    __builtin_memcpy(row, from + i * sizeof row, sizeof row);
    const Bits low[2] = {zip_low(row[0], row[1]), zip_low(row[2], row[3])};
    const Bits high[2] = {zip_high(row[0], row[1]), zip_high(row[2], row[3])};
    part[i][0] = join_low(low[0], low[1]);
    part[i][1] = join_high(low[0], low[1]);
    part[i][2] = join_low(high[0], high[1]);
    part[i][3] = join_high(high[0], high[1]);
  }
#pragma GCC unroll 4
  for (int64_t c = 0; c < 4; ++c) {
    const Bits low[2] = {quarters<0, 1>(part[0][c], part[1][c]),
                         quarters<0, 1>(part[2][c], part[3][c])};
    const Bits high[2] = {quarters<2, 3>(part[0][c], part[1][c]),
                          quarters<2, 3>(part[2][c], part[3][c])};
    const Bits channel[4] = {quarters<0, 2>(low[0], low[1]), quarters<1, 3>(low[0], low[1]),
                             quarters<0, 2>(high[0], high[1]), quarters<1, 3>(high[0], high[1])};
#pragma GCC unroll 4
    for (int64_t q = 0; q < 4; ++q) {
      __builtin_memcpy(to + (4 * q + c) * kTileRowBytes, &channel[q], sizeof channel[q]);
    }
  }
}

// One slice of 16 channels; `token` is its first.
template <int kTerms, class T>
inline void pack_slice(const Activations& x, int64_t token, int64_t channel, char* rows,
                       char* columns) {
  const int64_t left = x.channels - channel;
  const int64_t count = x.tokens - token;
  const T* from = static_cast<const T*>(x.data) + token * x.stride + channel;
  for (int64_t t = 0; t < kSlice; t += 2, from += 2 * x.stride) {
    const Vec even = t < count ? load_channels(from, left) : Vec{};
    const Vec odd = t + 1 < count ? load_channels(from + x.stride, left) : Vec{};
    pack_pair<kTerms>(even, odd, columns + t / 2 * kTileRowBytes);
  }
  for (int term = 0; term < kTerms; ++term) {
    transpose(columns + term * kBlockBytes, rows + term * kBlockBytes);
  }
}

template <Element element, class T>
void pack_strips(const Activations& x, int64_t first, int64_t last, char* packed) {
  constexpr int kTerms = terms_of(element);
  const int64_t slices = slices_of(x.tokens);
  const int64_t operand = slices * kTerms * kBlockBytes;
  for (int64_t strip = first; strip < last; ++strip) {
    char* rows = packed + 2 * strip * operand;
    for (int64_t slice = 0; slice < slices; ++slice, rows += kTerms * kBlockBytes) {
      for (int64_t half = 0; half < 2; ++half) {
        char* to = rows + half * kTileBytes;
        pack_slice<kTerms, T>(x, slice * kSlice, strip * kBlock + half * kTileRows, to,
                              to + operand);
      }
    }
  }
}

void pack(const Activations& x, int64_t first, int64_t last, void* packed) {
  char* to = static_cast<char*>(packed);
  switch (x.element) {
    case Element::kFloat:
      return pack_strips<Element::kFloat, float>(x, first, last, to);
    case Element::kBFloat16:
      return pack_strips<Element::kBFloat16, uint16_t>(x, first, last, to);
    case Element::kHalf:
      return pack_strips<Element::kHalf, _Float16>(x, first, last, to);
  }
}

// ---- Products. Tiles 0 to 3 hold the sums of a block, 4 and 5 rows, 6 and 7 columns ----

inline void load_rows(const char* from) {
  _tile_loadd(4, from, kTileRowBytes);
  _tile_loadd(5, from + kTileBytes, kTileRowBytes);
}

inline void load_columns(const char* from) {
  _tile_loadd(6, from, kTileRowBytes);
  _tile_loadd(7, from + kTileBytes, kTileRowBytes);
}

inline void multiply() {
  _tile_dpbf16ps(0, 4, 6);
  _tile_dpbf16ps(1, 4, 7);
  _tile_dpbf16ps(2, 5, 6);
  _tile_dpbf16ps(3, 5, 7);
}

// Products of the terms i and j with i + j ≤ 2, in an order that finds half the columns loaded.
template <int kTerms>
inline void multiply_slice(const char* rows, const char* columns) {
  int loaded = -1;
#pragma GCC unroll 3
  for (int i = 0; i < kTerms; ++i) {
    load_rows(rows + i * kBlockBytes);
    const int count = min_of(kTerms, 3 - i);
#pragma GCC unroll 3
    for (int n = 0; n < count; ++n) {
      const int j = i % 2 == 0 ? count - 1 - n : n;
      if (j != loaded) load_columns(columns + j * kBlockBytes);
      loaded = j;
      multiply();
    }
  }
}

inline void clear_sums() {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}

constexpr int64_t kSumStride = kBlock * sizeof(float);

// The four tiles as one [32][32] block.
inline void load_sums(const float* from) {
  _tile_loadd(0, from, kSumStride);
  _tile_loadd(1, from + kTileRows, kSumStride);
  _tile_loadd(2, from + kTileRows * kBlock, kSumStride);
  _tile_loadd(3, from + kTileRows * kBlock + kTileRows, kSumStride);
}

inline void store_sums(float* to) {
  _tile_stored(0, to, kSumStride);
  _tile_stored(1, to + kTileRows, kSumStride);
  _tile_stored(2, to + kTileRows * kBlock, kSumStride);
  _tile_stored(3, to + kTileRows * kBlock + kTileRows, kSumStride);
}

// The Gram's lines of a block come from memory while the block is computed.
inline void prefetch(const float* gram) {
  for (int64_t r = 0; r < kBlock; ++r, gram += kGramTile) {
    __builtin_prefetch(gram, 1, 2);
    __builtin_prefetch(gram + kLanes, 1, 2);
  }
}

// Adds a block to the Gram.
inline void add(const float* sums, float* gram) {
  for (int64_t r = 0; r < kBlock; ++r, sums += kBlock, gram += kGramTile) {
    store(gram, load(gram) + load(sums));
    store(gram + kLanes, load(gram + kLanes) + load(sums + kLanes));
  }
}

// One row tile of a group: its blocks [first, last).
template <int kTerms>
inline void row_tile(const char* packed, int64_t slices, int64_t row, int64_t first, int64_t last,
                     float* gram) {
  constexpr int64_t kSliceBytes = kTerms * kBlockBytes;
  const int64_t operand = slices * kSliceBytes;
  const char* rows = packed + 2 * row * operand;
  alignas(64) float sums[kBlocks][kBlockSums];
  for (int64_t begin = 0; begin < slices; begin += kChunk / kTerms) {
    const int64_t end = min_of(begin + kChunk / kTerms, slices);
    for (int64_t block = first; block < last; ++block) {
      const char* columns = packed + (2 * block + 1) * operand;
      float* sum = sums[block - first];
      if (begin == 0) {
        prefetch(gram + gram_index(row * kBlock, block * kBlock));
        clear_sums();
      } else {
        load_sums(sum);
      }
      for (int64_t slice = begin; slice < end; ++slice) {
        multiply_slice<kTerms>(rows + slice * kSliceBytes, columns + slice * kSliceBytes);
      }
      store_sums(sum);
    }
  }
  for (int64_t block = first; block < last; ++block) {
    add(sums[block - first], gram + gram_index(row * kBlock, block * kBlock));
  }
}

template <Element element>
void tiles_of(const char* packed, int64_t count, int64_t channels, int64_t group, int64_t first,
              int64_t last, float* gram) {
  constexpr int kTerms = terms_of(element);
  const int64_t slices = count / steps(element, kSlice);
  const int64_t blocks = min_of((group + 1) * kBlocks, divide_up(channels, kBlock));
  for (int64_t row = first; row < last; ++row) {
    // Blocks below the diagonal are left out.
    row_tile<kTerms>(packed, slices, row, max_of(group * kBlocks, row), blocks, gram);
  }
}

void tiles(const void* packed, Element element, int64_t count, int64_t channels, int64_t group,
           int64_t first, int64_t last, float* gram) {
  const char* from = static_cast<const char*>(packed);
  _tile_loadconfig(&kFullTiles);
  switch (element) {
    case Element::kFloat:
      tiles_of<Element::kFloat>(from, count, channels, group, first, last, gram);
      break;
    case Element::kBFloat16:
      tiles_of<Element::kBFloat16>(from, count, channels, group, first, last, gram);
      break;
    case Element::kHalf:
      tiles_of<Element::kHalf>(from, count, channels, group, first, last, gram);
      break;
  }
  _tile_release();
}

}  // namespace

extern const GramKernels gram_kernels;
const GramKernels gram_kernels = {kBlock, kColumns, kBlock, &tokens_at_once, &steps, &pack, &tiles};

}  // namespace mlcalib::cpu::MLCALIB_ISA
