// What q_sample and p_sample share: a token's random numbers and draws from pi.
#pragma once

#include <algorithm>

#include "../philox.h"
#include "kernels.h"

namespace d3pm {

// A token has more than one pair where it jumps more than once.
inline Uniforms token_uniforms(const Random& random, int64_t num_tokens, int64_t token,
                               int64_t pair = 0) {
  const int64_t positions = num_tokens / random.num_seeds;
  return uniforms(static_cast<uint64_t>(random.seeds[token / positions]),
                  static_cast<uint64_t>(random.step),
                  static_cast<uint64_t>(token % positions + (pair << 40)));
}

// The class in which the uniform `draw` falls: cdf[j - 1] <= draw < cdf[j].
inline int64_t draw_base(double draw, const double* cdf, int64_t num_classes) {
  if (!cdf) return static_cast<int64_t>(draw * static_cast<double>(num_classes));
  return std::upper_bound(cdf, cdf + num_classes, draw) - cdf;
}

}  // namespace d3pm
