// A token of a loss, before and after its row is read.
#pragma once

#include "../loss_token.h"
#include "rows.h"

namespace d3pm::device {

#include "../loss_row.h"

// The vector of a call, its runs and its weights.
template <class Real>
struct LossVector : Vector<Real> {
  LossWeights<Real> weights;
  Runs runs;

  explicit LossVector(const Loss& call)
      : Vector<Real>(call.chain.vector<Real>()),
        weights(call.weights),
        runs(call.chain.run_length) {}

  // Told the compiler whether there is a pi.
  template <bool kHasPi>
  __device__ LossVector known() const {
    LossVector vector = *this;
    if (!kHasPi) vector.pi = nullptr;
    return vector;
  }
};

// Whether a call is one of most trainings: by the joint model, all tokens count, and their loss and
// its gradient alone are wanted.
inline bool is_plain(const Loss& call) {
  return !call.mask && !call.weights.tokens && !call.count && !call.is_density &&
         !call.with_terms && !call.model.posterior_mean && call.grad;
}

// Told the compiler.
template <bool kIsPlain>
__device__ Loss known(Loss call) {
  if (kIsPlain) {
    call.mask = nullptr;
    call.weights.tokens = call.count = nullptr;
    call.is_density = call.with_terms = call.model.posterior_mean = false;
  }
  return call;
}

// A token before its row is read. Settled, its loss and all of its gradient are `value`, 0 or NaN.
template <class Real>
struct alignas(16) KnownToken : KnownLoss<Math<Real>> {
  int x0 = 0, x_t = 0;
  Real value = 0;
  bool settled = true, has_mask_apart = false;

  KnownToken() = default;

  // All that is known.
  __device__ KnownToken(const Loss& call, const LossVector<Real>& vector, int64_t token) {
    LossStep<Real> step;
    *this = {call, vector, token, token < call.chain.num_tokens, step};
    look_up(call, vector, step);
  }

  // Leaves what only a row needs to look_up(). Without branches: all tokens of a warp are looked
  // up, in place of those that are not there, with !inside, the last.
  __device__ KnownToken(const Loss& call, const LossVector<Real>& vector, int64_t token,
                        bool inside, LossStep<Real>& step) {
    const Chain& chain = call.chain;
    if (!inside) token = chain.num_tokens - 1;
    const int64_t row = chain.rows[vector.runs.of(token)], from = call.x0[token],
                  to = call.x_t[token];
    const bool has_row = static_cast<uint64_t>(row) < static_cast<uint64_t>(chain.table_size);
    const int at = has_row ? static_cast<int>(row) : 0;  // as many rows fill no memory
    step = {call, reinterpret_cast<const StepCoefficients*>(chain.table)[at], vector.weights};
    const bool is_valid = has_row & (step.keep == step.keep) & chain.is_class(from) &
                          (static_cast<int>(from) != static_cast<int>(chain.forbidden)) &
                          chain.is_class(to);
    x0 = is_valid ? static_cast<int>(from) : 0;
    x_t = is_valid ? static_cast<int>(to) : 0;
    const Real weight = call.weights.of<Real>(token);
    const LossToken<Real> of(step, vector, call.model.posterior_mean, x0, x_t,
                             static_cast<int>(chain.mask_id), weight);
    const bool counts = inside && call.counts<Real>(token);
    settled = !counts || !is_valid || of.settled;
    value = !counts ? Real(0) : is_valid ? of.value : Real(NAN);
    this->keep = step.keep;
    this->bar_keep = step.bar_keep;
    this->bar_base = step.bar_base;
    this->is_tilted = of.is_tilted;
    this->vb = settled ? Real(0) : of.vb;
    this->ce = of.ce;
    this->diverges = !settled && of.diverges;
    this->is_direct = step.predicts_x0;
  }

  __device__ void look_up(const Loss& call, const Vector<Real>& vector,
                          const LossStep<Real>& step) {
    const int mask = static_cast<int>(call.chain.mask_id);
    has_mask_apart = !settled && mask >= 0 && mask != x0 && mask != x_t;
    const Real pi_mask = mask < 0 ? Real(0) : vector.pi_of(mask);
    KnownLoss<Math<Real>>::look_up(x0, x_t, mask, vector.pi_of(x0), vector.pi_of(x_t), pi_mask,
                                   step.base, step.to_mask, step.bar_to_mask, call.is_density);
  }
};

// A token and the mathematics of its row.
template <class Real>
struct TokenRow : LossRow<Math<Real>> {
  int64_t token;
  int x0, x_t;
  bool inside, settled, has_mask_apart;
  Real value;

  __device__ TokenRow(const KnownToken<Real>& known, int64_t token, bool inside)
      : token(token),
        x0(known.x0),
        x_t(known.x_t),
        inside(inside),
        settled(known.settled),
        has_mask_apart(known.has_mask_apart),
        value(known.value) {
    static_cast<KnownLoss<Math<Real>>&>(*this) = known;
  }

  // Takes in exp(logit - top) of the classes apart.
  __device__ void read(const Exponential<Real>& exp, Real logit_x0, Real logit_xt,
                       Real logit_mask) {
    this->e_x0 = exp(logit_x0);
    this->e_xt = exp(logit_xt);
    this->e_mask = has_mask_apart ? exp(logit_mask) : Real(0);
    this->below_top = -exp.log(logit_x0);
  }

  // Where there is the token.
  __device__ void write_loss(const Loss& call) const {
    if (!inside) return;
    Real* const to = static_cast<Real*>(call.loss) + token * call.num_results();
    *to = settled ? value : this->loss;
    if (!call.with_terms) return;
    const Real weight = call.weights.of<Real>(token);
    to[1] = settled ? value : weight * this->bound();
    to[2] = settled ? value : weight * this->cross_entropy;
  }
};

}  // namespace d3pm::device
