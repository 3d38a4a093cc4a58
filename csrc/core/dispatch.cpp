// SPDX-License-Identifier: Apache-2.0
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "core/kernels.h"

namespace il {
namespace {

#define IL_ENTRY(name, params) &IL_CURRENT::name,
#define IL_CURRENT baseline
const KernelTable kBaseline = {IL_CPU_KERNELS(IL_ENTRY) "baseline"};
#undef IL_CURRENT
#ifdef IL_HAVE_AVX2
#define IL_CURRENT avx2
const KernelTable kAvx2 = {IL_CPU_KERNELS(IL_ENTRY) "avx2"};
#undef IL_CURRENT
#endif
#ifdef IL_HAVE_AVX512
#define IL_CURRENT avx512
const KernelTable kAvx512 = {IL_CPU_KERNELS(IL_ENTRY) "avx512"};
#undef IL_CURRENT
#endif
#undef IL_ENTRY

// Every flag a set is compiled with must be asked for: a virtual machine may hide any one of them.
int supported_tables(const KernelTable** out) {
  int n = 0;
  out[n++] = &kBaseline;
#ifdef IL_HAVE_AVX2
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  if (avx2) out[n++] = &kAvx2;
#ifdef IL_HAVE_AVX512
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
    out[n++] = &kAvx512;
  }
#endif
#endif
  return n;
}

}  // namespace

const KernelTable& kernels() {
  static const KernelTable* chosen = [] {
    const KernelTable* tables[3];
    int n = supported_tables(tables);
    if (const char* want = std::getenv("INNERLOOP_CPU")) {
      for (int i = 0; i < n; ++i) {
        if (std::strcmp(tables[i]->isa, want) == 0) return tables[i];
      }
      if (*want != 0) {
        throw std::invalid_argument("INNERLOOP_CPU is '" + std::string(want) + "', expected one of " +
                                    available_isas());
      }
    }
    return tables[n - 1];
  }();
  return *chosen;
}

const char* available_isas() {
  static const std::string names = [] {
    const KernelTable* tables[3];
    int n = supported_tables(tables);
    std::string s;
    for (int i = 0; i < n; ++i) s += std::string(i ? "," : "") + tables[i]->isa;
    return s;
  }();
  return names.c_str();
}

}  // namespace il
