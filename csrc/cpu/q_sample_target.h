// Draws x_t ~ q(x_t | x_0) for a run of tokens, for one set of vector instructions.

#include "simd.h"
#include "uniforms_cursor.h"

static bool q_sample(const QSample& call, int64_t begin, int64_t end) {
  const Chain& chain = call.chain;
  UniformsCursor uniforms_of(call.random, chain.num_tokens);
  bool bad = false;
  for (int64_t first = begin, last; first < end; first = last) {
    const int64_t run = first / chain.run_length;
    last = std::min(end, (run + 1) * chain.run_length);
    const double* step = chain.has_row(run) ? chain.table + 3 * chain.rows[run] : nullptr;
    for (int64_t token = first; token < last; ++token) {
      const int64_t x = call.out[token] = call.x[token];
      if (!step || !chain.is_class(x)) {
        call.out[token] = kNone;
        bad = true;
        continue;
      }
      const Uniforms u = uniforms_of(token);
      if (u.choice < step[0]) continue;
      const bool redrawn = u.choice < step[0] + step[1] || chain.mask_id < 0;
      call.out[token] = redrawn ? draw_base(u.draw, call.cdf, chain.num_classes) : chain.mask_id;
    }
  }
  return bad;
}
