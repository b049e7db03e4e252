// SPDX-License-Identifier: Apache-2.0
#include <c10/util/Exception.h>

#ifdef MLCALIB_X86
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "kernels.hpp"

namespace mlcalib::cpu {

namespace baseline {
extern const KernelTable table;
}
#ifdef MLCALIB_X86
namespace avx2 {
extern const KernelTable table;
}
namespace avx512 {
extern const KernelTable table;
}
namespace avx512_bf16 {
extern const KernelTable table;
}
namespace amx {
extern const GramKernels gram_kernels;
extern const PackedBlockKernels packed_block_kernels;
}  // namespace amx
#endif

namespace {

#ifdef MLCALIB_X86
// Asked by cpuid, because __builtin_cpu_supports of clang 16 knows neither by name.
bool has_f16c() {
  constexpr unsigned kF16c = 1U << 29;
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & kF16c) != 0;
}

bool has_amx() {
  constexpr unsigned kBf16 = 1U << 22, kTile = 1U << 24;
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (d & kBf16) != 0 && (d & kTile) != 0;
}

// Whether the tile registers may be used: Linux saves them only for a process that asks.
bool has_tiles() {
#ifdef SYS_arch_prctl
  constexpr long kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr long kTileData = 18;               // XFEATURE_XTILEDATA
  return has_amx() && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

// Tiles for the Gram and for packed weights; everything else as the instruction set below.
const KernelTable& amx_table() {
  static const KernelTable table = [] {
    KernelTable copy = avx512_bf16::table;
    copy.name = "amx";
    copy.gram = &amx::gram_kernels;
    copy.packed_blocks = &amx::packed_block_kernels;
    return copy;
  }();
  return table;
}
#endif

const std::vector<const KernelTable*>& tables() {
  static const std::vector<const KernelTable*> found = [] {
    std::vector<const KernelTable*> list;
#ifdef MLCALIB_X86
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
      if (__builtin_cpu_supports("avx512bf16")) {
        if (has_tiles()) list.push_back(&amx_table());
        list.push_back(&avx512_bf16::table);
      }
      list.push_back(&avx512::table);
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c()) {
      list.push_back(&avx2::table);
    }
#endif
    list.push_back(&baseline::table);
    return list;
  }();
  return found;
}

const KernelTable& choose() {
  const char* wanted = std::getenv("MLCALIB_ISA");
  if (wanted == nullptr || *wanted == '\0') return *tables().front();
  std::string have;
  for (const KernelTable* table : tables()) {
    if (std::string_view(table->name) == wanted) return *table;
    have += std::string(have.empty() ? "" : ", ") + table->name;
  }
  TORCH_CHECK_VALUE(false, "MLCALIB_ISA=", wanted,
                    " is not an instruction set that this processor ", "runs; it runs: ", have,
                    ". Set MLCALIB_ISA to one of these or unset it.");
}

}  // namespace

KernelTables available_kernels() { return {tables().data(), tables().data() + tables().size()}; }

const KernelTable& kernels() {
  static const KernelTable& chosen = choose();
  return chosen;
}

}  // namespace mlcalib::cpu
