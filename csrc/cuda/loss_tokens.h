// A token of a loss, before and after its row is read.
#pragma once

#include "../loss_token.h"
#include "rows.h"

namespace d3pm::device {

#include "../loss_row.h"

// A token before its row is read. Settled, its loss and all of its gradient are `value`.
template <class Real>
struct alignas(16) KnownToken : KnownLoss<Math<Real>> {
  int x0 = 0, x_t = 0;
  Real value = 0;
  bool settled = true, has_mask_apart = false;

  KnownToken() = default;
  __device__ KnownToken(const Loss& call, const Vector<Real>& vector, int64_t token) {
    this->bar_base = this->vb = this->diverges = 0;
    if (token < call.chain.num_tokens && call.counts<Real>(token)) look_up(call, vector, token);
  }

 private:
  __device__ void look_up(const Loss& call, const Vector<Real>& vector, int64_t token) {
    const Chain& chain = call.chain;
    value = NAN;
    const int64_t from = call.x0[token], to = call.x_t[token];
    const StepCoefficients* const found = chain.step(token / chain.run_length);
    if (!found || !chain.may_be_data(from) || !chain.is_class(to)) return;
    x0 = static_cast<int>(from);
    x_t = static_cast<int>(to);
    const int mask = static_cast<int>(chain.mask_id);
    has_mask_apart = mask >= 0 && mask != x0 && mask != x_t;

    const LossStep<Real> step(call, *found);
    const Real weight = call.weights.of<Real>(token);
    const LossToken<Real> of(step, vector, call.model.posterior_mean, x0, x_t, mask, weight);
    settled = of.settled;
    value = of.value;
    this->keep = step.keep;
    this->bar_keep = step.bar_keep;
    this->bar_base = step.bar_base;
    this->is_tilted = of.is_tilted;
    this->vb = of.vb;
    this->ce = of.ce;
    this->diverges = of.diverges;
    this->is_direct = step.predicts_x0;
    const Real pi_mask = mask < 0 ? Real(0) : vector.pi_of(mask);
    KnownLoss<Math<Real>>::look_up(x0, x_t, mask, vector.pi_of(x0), vector.pi_of(x_t), pi_mask,
                                   step.base, step.to_mask, step.bar_to_mask, step.is_density);
  }
};

// A token and the mathematics of its row.
template <class Real>
struct TokenRow : LossRow<Math<Real>> {
  int64_t token;
  int x0, x_t;
  bool inside, settled, has_mask_apart;
  Real value;

  __device__ TokenRow(const Loss& call, const KnownToken<Real>& known, int64_t token)
      : token(token),
        x0(known.x0),
        x_t(known.x_t),
        inside(token < call.chain.num_tokens),
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

  __device__ void write_loss(const Loss& call) const {
    Real* const to = static_cast<Real*>(call.loss) + token * call.num_results();
    *to = settled ? value : this->loss;
    if (!call.with_terms) return;
    const Real weight = call.weights.of<Real>(token);
    to[1] = settled ? value : weight * this->bound();
    to[2] = settled ? value : weight * this->cross_entropy;
  }
};

}  // namespace d3pm::device
