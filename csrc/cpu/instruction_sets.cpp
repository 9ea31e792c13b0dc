#include "instruction_sets.h"

#include <cstdlib>
#include <string>

namespace d3pm {

Target best_target() {
  static const Target target = [] {
    const char* asked = std::getenv("D3PM_FAST_ISA");
    const std::string most = asked ? asked : "avx512";
#ifdef __x86_64__
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                        __builtin_cpu_supports("avx512vl");
    if (avx512 && most == "avx512") return Target::avx512;
    if (avx2 && most != "baseline") return Target::avx2;
#endif
    return Target::baseline;
  }();
  return target;
}

}  // namespace d3pm
