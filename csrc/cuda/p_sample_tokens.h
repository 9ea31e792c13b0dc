// A token of p_sample, before and after its row is read. csrc/p_sample_token.h tells how it is
// drawn.
#pragma once

#include "../p_sample_token.h"
#include "rows.h"

namespace d3pm::device {

// What a row needs to know of its token, and what the token gets from it.
template <class Real>
struct alignas(16) RowOfDraw {
  double draw = 0, total = 0;
  Real tilt = 1, mass_xt = 0;
  int x_t = 0, of_model = 0;
  bool reads = false;
};

template <class Real>
struct DrawnToken {
  const PSample& call;
  const int64_t token;
  int64_t x_t = 0;
  bool good = false, reads = false;  // reads: whether it may move
  PSampleToken of;
  Uniforms random = {0, 0};

  __device__ DrawnToken(const PSample& call, int64_t token) : call(call), token(token) {
    const Chain& chain = call.chain;
    if (token >= chain.num_tokens) return;
    x_t = call.x_t[token];
    const StepCoefficients* const step = chain.step(token / chain.run_length);
    good = step && chain.is_class(x_t);
    if (!good) return;
    of = PSampleToken(*step, chain.vector<double>(), call.model.predicts_x0(*step), x_t);
    random = token_uniforms(call.random, chain.num_tokens, token);
    reads = !of.stays(random.choice);
  }

  __device__ RowOfDraw<Real> row() const {
    RowOfDraw<Real> made;
    if (!reads) return made;
    made.draw = random.draw;
    made.tilt = static_cast<Real>(of.tilt(call.model.posterior_mean));
    made.x_t = static_cast<int>(x_t);
    made.reads = true;
    return made;
  }

  // The total is NaN where a logit is, or inf, or all are -inf.
  __device__ void write(const RowOfDraw<Real>& row) const {
    if (token >= call.chain.num_tokens) return;
    int64_t drawn = good ? x_t : kNone;
    if (reads)
      drawn = row.total > 0
                  ? of.draw(call, random, row.mass_xt, row.total, [&] { return row.of_model; })
                  : kNone;
    call.out[token] = drawn;
  }
};

}  // namespace d3pm::device
