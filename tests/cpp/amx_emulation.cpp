// SPDX-License-Identifier: Apache-2.0
#include "amx_emulation.hpp"

#include <cfloat>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>

namespace mlcalib::amx_emulation {
namespace {

constexpr int kTiles = 8;
constexpr int kMaxRows = 16;
constexpr int kMaxRowBytes = 64;

struct Tile {
  int rows = 0;
  int row_bytes = 0;
  uint8_t data[kMaxRows][kMaxRowBytes] = {};
};

struct Tiles {
  bool configured = false;
  Tile tile[kTiles];
};

Tiles& tiles() {
  static thread_local Tiles tiles;
  return tiles;
}

void require(bool holds, const std::string& otherwise) {
  if (!holds) throw std::logic_error("AMX: " + otherwise);
}

Tile& at(int tile) {
  require(tiles().configured, "the tiles are not configured");
  require(tile >= 0 && tile < kTiles, "there is no tile " + std::to_string(tile));
  Tile& found = tiles().tile[tile];
  require(found.rows > 0, "tile " + std::to_string(tile) + " has no rows");
  return found;
}

// Denormals are zero, in what goes in and what comes out.
float flush(float x) { return std::fabs(x) < FLT_MIN ? std::copysign(0.0F, x) : x; }

float multiply_add(float a, float b, float sum) {
  return flush(std::fma(flush(a), flush(b), flush(sum)));
}

float sum_of(float a, float b) { return flush(flush(a) + flush(b)); }

float read_bfloat16(const uint8_t* from) {
  uint16_t high;
  std::memcpy(&high, from, sizeof high);
  const uint32_t bits = uint32_t{high} << 16;
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

float read_float(const uint8_t* from) {
  float x;
  std::memcpy(&x, from, sizeof x);
  return x;
}

}  // namespace

void load_config(const void* config) {
  uint8_t bytes[64];
  std::memcpy(bytes, config, sizeof bytes);
  require(bytes[0] == 1, "palette " + std::to_string(bytes[0]));
  for (int i = 2; i < 16; ++i) require(bytes[i] == 0, "a reserved byte is set");
  Tiles found{.configured = true, .tile = {}};
  for (int i = 0; i < kMaxRows; ++i) {
    uint16_t row_bytes;
    std::memcpy(&row_bytes, bytes + 16 + 2 * i, sizeof row_bytes);
    const int rows = bytes[48 + i];
    if (i >= kTiles) {
      require(rows == 0 && row_bytes == 0, "there is no tile " + std::to_string(i));
      continue;
    }
    require(rows <= kMaxRows && row_bytes <= kMaxRowBytes, "a tile is too large");
    require((rows == 0) == (row_bytes == 0),
            "a tile has rows without bytes, or bytes without rows");
    found.tile[i].rows = rows;
    found.tile[i].row_bytes = row_bytes;
  }
  tiles() = found;
}

void release() { tiles() = Tiles{}; }

bool configured() { return tiles().configured; }

void load(int tile, const void* from, int64_t stride) {
  zero(tile);
  Tile& to = at(tile);
  for (int r = 0; r < to.rows; ++r) {
    std::memcpy(to.data[r], static_cast<const uint8_t*>(from) + r * stride, to.row_bytes);
  }
}

void store(int tile, void* to, int64_t stride) {
  const Tile& from = at(tile);
  for (int r = 0; r < from.rows; ++r) {
    std::memcpy(static_cast<uint8_t*>(to) + r * stride, from.data[r], from.row_bytes);
  }
}

void zero(int tile) { std::memset(at(tile).data, 0, sizeof(Tile::data)); }

void dot_bf16(int sum, int a, int b) {
  Tile& to = at(sum);
  const Tile& left = at(a);
  const Tile& right = at(b);
  require(sum != a && sum != b && a != b, "TDPBF16PS takes three different tiles");
  require(left.row_bytes % 4 == 0 && right.row_bytes % 4 == 0 && left.rows == to.rows &&
              right.row_bytes == to.row_bytes && left.row_bytes / 4 == right.rows,
          "the shapes of TDPBF16PS's tiles do not fit");
  for (int m = 0; m < to.rows; ++m) {
    for (int n = 0; n < to.row_bytes / 4; ++n) {
      float even = 0, odd = 0;
      for (int k = 0; k < right.rows; ++k) {
        const uint8_t* x = left.data[m] + 4 * k;
        const uint8_t* y = right.data[k] + 4 * n;
        even = multiply_add(read_bfloat16(x), read_bfloat16(y), even);
        odd = multiply_add(read_bfloat16(x + 2), read_bfloat16(y + 2), odd);
      }
      uint8_t* entry = to.data[m] + 4 * n;
      const float found = sum_of(read_float(entry), sum_of(even, odd));
      std::memcpy(entry, &found, sizeof found);
    }
  }
}

}  // namespace mlcalib::amx_emulation
