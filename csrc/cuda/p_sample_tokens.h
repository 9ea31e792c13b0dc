// A token of p_sample, before and after its row is read. csrc/p_sample_token.h tells how it is
// drawn.
#pragma once

#include "../p_sample_token.h"
#include "rows.h"

namespace d3pm::device {

// The vector of a call, its runs of tokens of one step, and those of one item.
struct DrawVector : Vector<double> {
  Runs steps, items;

  explicit DrawVector(const PSample& call)
      : Vector<double>(call.chain.vector<double>()),
        steps(call.chain.run_length),
        items(call.chain.num_tokens / call.random.num_seeds) {}
};

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

  __device__ DrawnToken(const PSample& call, const DrawVector& vector, int64_t token)
      : call(call), token(token) {
    const Chain& chain = call.chain;
    if (token >= chain.num_tokens) return;
    x_t = call.x_t[token];
    const StepCoefficients* const step = chain.step(vector.steps.of(token));
    good = step && chain.is_class(x_t);
    if (!good) return;
    of = PSampleToken(*step, vector, call.model.predicts_x0(*step), x_t);
    const int64_t item = vector.items.of(token);
    random = uniforms_at(call.random, item, token - item * vector.items.length);
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

// A sum's neighbour: the first running sum above it is the sum itself.
__device__ inline double below(double sum) { return sum * (1 - 0x1p-52); }

// How many of some running sums a target has passed, and how far it is into the next.
template <int kCount>
__device__ int passed(const double (&running)[kCount], double target, double& into) {
  int index = 0;
  into = target;
#pragma unroll
  for (int v = 0; v < kCount; ++v) {
    if (running[v] > target) continue;
    ++index;
    into = target - running[v];
  }
  return index;
}

// One of some masses, in one of whose place that of x_t stands. Their sum in double has some that
// are too rare for the sum in their own type, into which the target is `into`: it moves along.
template <int kCount, class Real>
__device__ int one_of(const Real (&masses)[kCount], int of_xt, Real mass_xt, double into) {
  Real part = 0 <= of_xt && of_xt < kCount ? mass_xt : Real(0);
  double running[kCount];
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    part += masses[i];
    running[i] = (i == of_xt ? mass_xt : masses[i]) + (i ? running[i - 1] : 0.0);
  }
  const double sum = running[kCount - 1], last = below(sum);
  const Real more = static_cast<Real>(sum - part) * Math<Real>::reciprocal(part);
  const double moved = into + into * more, target = moved < last ? moved : last;
  int index = 0;
#pragma unroll
  for (int i = 0; i < kCount; ++i) index += running[i] <= target;
  return index;
}

}  // namespace d3pm::device
