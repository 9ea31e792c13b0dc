// The sets of vector instructions that kernels are compiled for, see for_each_target.h.
#pragma once

namespace d3pm {

enum class Target { baseline, avx2, avx512 };

// The best set of vector instructions this machine has, or the lesser one that D3PM_FAST_ISA
// (baseline, avx2, avx512) asks for.
Target best_target();

}  // namespace d3pm
