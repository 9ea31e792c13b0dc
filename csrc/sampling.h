// A token's random numbers, and draws from pi.
#pragma once

#include "philox.h"

namespace d3pm {

// One seed for every item of the batch, and the counter of the step.
struct Random {
  const int64_t* seeds;
  int64_t num_seeds, step;
};

// A token has more than one pair where it jumps more than once.
D3PM_HOST_DEVICE inline Uniforms token_uniforms(const Random& random, int64_t num_tokens,
                                                int64_t token, int64_t pair = 0) {
  const int64_t positions = num_tokens / random.num_seeds;
  return uniforms(static_cast<uint64_t>(random.seeds[token / positions]),
                  static_cast<uint64_t>(random.step),
                  static_cast<uint64_t>(token % positions + (pair << 40)));
}

// The class in which the uniform `draw` falls: cdf[j - 1] <= draw < cdf[j].
D3PM_HOST_DEVICE inline int64_t draw_base(double draw, const double* cdf, int64_t num_classes) {
  if (!cdf) return static_cast<int64_t>(draw * static_cast<double>(num_classes));
  int64_t first = 0;
  for (int64_t count = num_classes; count > 0;) {
    const int64_t half = count / 2;
    const bool below = cdf[first + half] <= draw;
    first = below ? first + half + 1 : first;
    count = below ? count - half - 1 : half;
  }
  return first;
}

}  // namespace d3pm
