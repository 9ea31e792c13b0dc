#include "../sampling.h"
#include "kernels.h"

namespace d3pm {
namespace {

bool q_sample_tokens(const QSample& call, int64_t begin, int64_t end) {
  const Chain& chain = call.chain;
  const int64_t run_length = chain.num_tokens / chain.num_rows;
  bool bad = false;
  for (int64_t token = begin; token < end; ++token) {
    const int64_t x = call.x[token], row = chain.rows[token / run_length];
    call.out[token] = x;
    if (row < 0 || row >= chain.table_size || !chain.is_class(x)) {
      bad = true;
      continue;
    }
    const double* step = chain.table + 3 * row;
    const Uniforms u = token_uniforms(call.random, chain.num_tokens, token);
    if (u.choice < step[0]) continue;
    const bool redrawn = u.choice < step[0] + step[1] || chain.mask_id < 0;
    call.out[token] = redrawn ? draw_base(u.draw, call.cdf, chain.num_classes) : chain.mask_id;
  }
  return bad;
}

}  // namespace

bool run(const QSample& call) {
  const int64_t size = call.chain.num_tokens;
  return parallel(size, 16.0 * static_cast<double>(size), call.num_threads,
                  [&](int64_t begin, int64_t end) { return q_sample_tokens(call, begin, end); });
}

}  // namespace d3pm
