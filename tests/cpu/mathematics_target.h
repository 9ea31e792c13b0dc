#include "cpu/simd.h"

// A lane may hold anything where another's result is wanted: words of every exponent and sign.
static unsigned sum_of_all() {
  using M = Math<float>;
  using V = M::V;
  unsigned sum = 0, seed = 1;
  const auto next = [&] {
    uint32_t words[kLanes<float>];
    for (uint32_t& word : words) word = seed = seed * 1664525u + 1013904223u;
    return load<V>(words);
  };
  const auto take = [&](const V& v) {
    uint32_t words[kLanes<float>];
    store(words, v);
    for (uint32_t word : words) sum += word;
  };
  for (int i = 0; i < 10000; ++i) {
    const V x = next(), y = next();
    for (const V& v : {M::exp(x), M::expm1(x), M::log(x), M::log1p(x), M::phi(x, y),
                       M::powers(x).exp, M::powers(x).expm1, M::powers(x).psi})
      take(v);
    take(M::phi_of_product(x, y, x < y));
    take(M::reciprocal_of_normal(x));
    M::ProductLog log;
    log.multiply(x);
    log.multiply(y);
    take(log.value());
    take(Memory<BFloat16>::widen(Memory<BFloat16>::narrow(x)));
    take(Memory<Float16>::widen(Memory<Float16>::narrow(x)));
    take(splat<float>(first_lanes<float>(i % 20)[0]));
  }
  return sum;
}
