// SPDX-License-Identifier: Apache-2.0
#include <c10/util/Exception.h>

#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "kernels.hpp"

namespace mlcalib::cpu {

namespace generic {
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
#endif

namespace {

const std::vector<const KernelTable*>& tables() {
  static const std::vector<const KernelTable*> found = [] {
    std::vector<const KernelTable*> list;
#ifdef MLCALIB_X86
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
      if (__builtin_cpu_supports("avx512bf16")) list.push_back(&avx512_bf16::table);
      list.push_back(&avx512::table);
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
        __builtin_cpu_supports("f16c")) {
      list.push_back(&avx2::table);
    }
#endif
    list.push_back(&generic::table);
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
