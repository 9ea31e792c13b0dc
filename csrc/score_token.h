// What is known of a token's loss by scores before its row is read; score_row.h goes on from there.
#pragma once

#include "loss_token.h"

namespace d3pm {

// r of a class, and log r in two parts: `high` is a multiple of 2^-16, so that in float, too, what
// is taken from a log score near it leaves all digits of the difference.
template <class Real>
struct ScoreRatio {
  Real ratio = 0, high = 0, low = 0;

  ScoreRatio() = default;
  D3PM_HOST_DEVICE explicit ScoreRatio(double r) : ratio(static_cast<Real>(r)) {
    if (!(ratio > 0)) return;
    const double log_r = ::log(r), rounded = ::rint(log_r * 65536) / 65536;
    high = static_cast<Real>(rounded);
    low = static_cast<Real>(log_r - rounded);
  }
};

// A token: the loss and all of its gradient are `value`, or its row is read, and the loss is
// `slope` times the sum over the classes other than x_t. The bound's term of it is `bound` times
// that sum.
template <class Real>
struct ScoreToken {
  bool reads = false, bad = false;
  Real value = 0, slope = 0, bound = 0;
  int64_t x0 = -1, x_t = -1, apart = -1;     // apart: the mask where it has a ratio of its own
  bool has_mask = false;                     // else it adds nothing
  ScoreRatio<Real> of_x0, of_mask, of_rest;  // without pi_j, or times 1/K where all are the same

  D3PM_HOST_DEVICE ScoreToken(const ScoreLoss& whole, const StepCoefficients* found,
                              int64_t token) {
    const Loss& call = whole.of;
    const Chain& chain = call.chain;
    if (!call.counts<Real>(token)) return;
    const int64_t from = call.x0[token], to = call.x_t[token];
    bad = !found || !chain.may_be_data(from) || !chain.is_class(to);
    if (bad) {
      value = NAN;
      return;
    }
    const LossStep<Real> step(call, *found);
    const Real weight = call.weights.of<Real>(token);
    const LossToken<Real> of(step, chain.template vector<Real>(), false, from, to, chain.mask_id,
                             weight);
    value = of.value;
    reads = of.vb != 0 || of.diverges;
    if (!reads) return;
    // In float an error of pi would be one of log r.
    const Vector<double> vector{whole.pi, 1.0 / static_cast<double>(chain.num_classes),
                                chain.mask_id};
    const auto spread = [&](int64_t j) { return vector(found->bar_base, found->bar_mask, j); };
    const double rate = vector(found->base, found->mask, to);
    const double reach = spread(to) + (from == to ? found->bar_keep : 0);
    slope = static_cast<Real>(rate) * of.vb;
    bound = static_cast<Real>(rate) * weight;
    x0 = from;
    x_t = to;
    of_x0 = ScoreRatio<Real>((spread(from) + found->bar_keep) / reach);
    of_rest = ScoreRatio<Real>(found->bar_base * (vector.pi ? 1 : vector.uniform) / reach);
    const int64_t mask = chain.mask_id;
    if (mask < 0 || mask == to || mask == from) return;
    apart = mask;
    const double of_it = spread(mask);
    has_mask = of_it > 0 || mask != chain.forbidden;
    of_mask = ScoreRatio<Real>(of_it / reach);
  }

  // Writes the loss, and its terms where they are wanted: there is no cross-entropy.
  D3PM_HOST_DEVICE void write(const Loss& call, int64_t token, Real sum) const {
    Real* const to = static_cast<Real*>(call.loss) + token * call.num_results();
    *to = reads && slope != 0 ? slope * sum : value;
    if (!call.with_terms) return;
    to[1] = reads ? bound * sum : value;
    to[2] = call.counts<Real>(token) ? static_cast<Real>(NAN) : Real(0);
  }

  D3PM_HOST_DEVICE bool is_apart(int64_t j) const { return j == x0 || j == x_t || j == apart; }
};

}  // namespace d3pm
