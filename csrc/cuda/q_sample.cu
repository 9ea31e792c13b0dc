// Draws x_t ~ q(x_t | x_0) of rank-one chains, a thread a token.

#include "device.h"

namespace d3pm::device {
namespace {

constexpr int kBlock = 256;

__global__ void __launch_bounds__(kBlock) q_sample(const QSample call) {
  const Chain& chain = call.chain;
  const int64_t token = int64_t{blockIdx.x} * kBlock + threadIdx.x;
  if (token >= chain.num_tokens) return;
  const int64_t x = call.x[token], run = token / chain.run_length;
  const bool good = chain.has_row(run) && chain.is_class(x);
  call.out[token] = good ? x : kNone;
  if (!good) return;
  const double* const step = chain.table + 3 * chain.rows[run];
  const Uniforms u = token_uniforms(call.random, chain.num_tokens, token);
  if (u.choice < step[0]) return;
  const bool redrawn = u.choice < step[0] + step[1] || chain.mask_id < 0;
  call.out[token] = redrawn ? draw_base(u.draw, call.cdf, chain.num_classes) : chain.mask_id;
}

}  // namespace

const char* launch(const QSample& call, void* on) {
  const auto stream = static_cast<cudaStream_t>(on);
  const int64_t blocks = (call.chain.num_tokens + kBlock - 1) / kBlock;
  D3PM_LAUNCH(q_sample, blocks, kBlock, 0, stream, call);
  return last_error();
}

}  // namespace d3pm::device
