// Philox4x32-10 (Salmon et al. 2011): a token's random numbers from its item's seed, the step
// and its position in the item.
#pragma once

#include <cstdint>

#include "rank_one.h"

namespace d3pm {

struct Uniforms {
  double choice, draw;
};

D3PM_HOST_DEVICE inline double to_unit(uint32_t low, uint32_t high) {
  const uint64_t bits = static_cast<uint64_t>(high) << 21 | low >> 11;
  return static_cast<double>(bits) * 0x1p-53;
}

D3PM_HOST_DEVICE inline Uniforms uniforms(uint64_t seed, uint64_t step, uint64_t position) {
  uint32_t c[4] = {static_cast<uint32_t>(position), static_cast<uint32_t>(position >> 32),
                   static_cast<uint32_t>(step), static_cast<uint32_t>(step >> 32)};
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53} * c[0], p1 = uint64_t{0xCD9E8D57} * c[2];
    c[0] = static_cast<uint32_t>(p1 >> 32) ^ c[1] ^ k0;
    c[2] = static_cast<uint32_t>(p0 >> 32) ^ c[3] ^ k1;
    c[1] = static_cast<uint32_t>(p1);
    c[3] = static_cast<uint32_t>(p0);
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
  return {to_unit(c[0], c[1]), to_unit(c[2], c[3])};
}

}  // namespace d3pm
