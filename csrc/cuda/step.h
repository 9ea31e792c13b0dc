// One token's step of a rank-one chain, in the type of the calculation.
#pragma once

#include "device.h"

namespace d3pm::device {

__device__ inline bool is_class(const Chain& chain, int64_t j) {
  return j >= 0 && j < chain.num_classes;
}

// The coefficients of a token's step; null where there is none.
__device__ inline const StepCoefficients* find_step(const Chain& chain, int64_t token) {
  const int64_t row = chain.rows[token / chain.run_length];
  if (row < 0 || row >= chain.table_size) return nullptr;
  const auto* step = reinterpret_cast<const StepCoefficients*>(chain.table) + row;
  return step->keep == step->keep ? step : nullptr;
}

// Whether the chain cannot go from x_0 to x_t, where no other class than x_t leads to x_t.
__device__ inline bool never_stays(const StepCoefficients& step, bool same, double bar_xt) {
  return step.keep * (bar_xt + (same ? step.bar_keep : 0)) == 0;
}

template <class Real>
__device__ Vector<Real> vector_of(const Chain& chain) {
  return {static_cast<const Real*>(chain.pi), 1.0 / static_cast<double>(chain.num_classes),
          chain.mask_id};
}

}  // namespace d3pm::device
