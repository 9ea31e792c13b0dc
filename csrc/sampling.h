// A token's random numbers, and draws from pi.
#pragma once

#include <cstdint>

#include "rank_one.h"

namespace d3pm {

D3PM_HOST_DEVICE inline void split(uint64_t value, uint32_t& low, uint32_t& high) {
  low = static_cast<uint32_t>(value);
  high = static_cast<uint32_t>(value >> 32);
}

D3PM_HOST_DEVICE inline void multiply(uint32_t a, uint32_t b, uint32_t& high, uint32_t& low) {
  split(uint64_t{a} * b, low, high);
}

#include "philox.h"

// The class of a draw from what is no law: out of range wherever it goes.
constexpr int64_t kNone = -1;

struct Uniforms {
  double choice, draw;
};

D3PM_HOST_DEVICE inline double to_unit(uint32_t low, uint32_t high) {
  const uint64_t bits = static_cast<uint64_t>(high) << 21 | low >> 11;
  return static_cast<double>(bits) * 0x1p-53;
}

// One seed for every item of the batch, the counter of the step, and the position in its item of
// the first token that is given of each.
struct Random {
  const int64_t* seeds;
  int64_t num_seeds, step, position_offset;
};

D3PM_HOST_DEVICE inline Uniforms uniforms_at(int64_t seed, int64_t step, int64_t position,
                                             int64_t pair) {
  uint32_t words[4], key[2];
  split(static_cast<uint64_t>(position + (pair << 40)), words[0], words[1]);
  split(static_cast<uint64_t>(step), words[2], words[3]);
  split(static_cast<uint64_t>(seed), key[0], key[1]);
  philox(words, key[0], key[1]);
  return {to_unit(words[0], words[1]), to_unit(words[2], words[3])};
}

// Those of the token at a position of an item. It has more than one pair where it jumps more than
// once.
D3PM_HOST_DEVICE inline Uniforms uniforms_at(const Random& random, int64_t item, int64_t position,
                                             int64_t pair = 0) {
  const int64_t of_item = random.position_offset + position;
  return uniforms_at(random.seeds[item], random.step, of_item, pair);
}

D3PM_HOST_DEVICE inline Uniforms token_uniforms(const Random& random, int64_t num_tokens,
                                                int64_t token, int64_t pair = 0) {
  const int64_t positions = num_tokens / random.num_seeds;
  return uniforms_at(random, token / positions, token % positions, pair);
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
