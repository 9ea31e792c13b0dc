// What is known of a token's loss before its row is read; loss_row.h goes on from there.
#pragma once

#include "calls.h"

namespace d3pm {

// The weights of a loss; that of the cross-entropy is another where the model predicts x_0.
template <class Real>
struct LossWeights {
  Real vb, ce, ce_of_prediction;

  explicit D3PM_HOST_DEVICE LossWeights(const Weights& weights)
      : vb(static_cast<Real>(weights.vb)),
        ce(static_cast<Real>(weights.ce)),
        ce_of_prediction(static_cast<Real>(weights.ce + weights.vb)) {}
};

// What the tokens of one step have in common.
template <class Real>
struct LossStep {
  const StepCoefficients* step = nullptr;
  bool predicts_x0 = false, is_density = false, with_terms = false;
  Real keep = 0, base = 0, to_mask = 0, bar_keep = 0, bar_base = 0, bar_to_mask = 0;
  Real vb = 0, ce = 0;

  LossStep() = default;
  D3PM_HOST_DEVICE LossStep(const Loss& call, const StepCoefficients& s)
      : LossStep(call, s, LossWeights<Real>(call.weights)) {}
  D3PM_HOST_DEVICE LossStep(const Loss& call, const StepCoefficients& s,
                            const LossWeights<Real>& weights)
      : step(&s),
        predicts_x0(call.model.predicts_x0(s)),
        is_density(call.is_density),
        with_terms(call.with_terms),
        keep(static_cast<Real>(s.keep)),
        base(static_cast<Real>(s.base)),
        to_mask(static_cast<Real>(s.mask)),
        bar_keep(at_least_normal<Real>(s.bar_keep)),
        bar_base(static_cast<Real>(s.bar_base)),
        bar_to_mask(static_cast<Real>(s.bar_mask)),
        vb(predicts_x0 ? Real(0) : weights.vb),
        ce(predicts_x0 ? weights.ce_of_prediction : weights.ce) {}
};

// A token of good classes: whether its loss and all of its gradient are settled to be `value`
// whatever its row, and if not, its weights of the terms and whether s[x_t] is
// tilted.
template <class Real>
struct LossToken {
  bool settled = true;
  bool diverges = false;
  bool is_tilted = false;
  Real value = 0, vb = 0, ce = 0;

  template <class Class>
  D3PM_HOST_DEVICE LossToken(const LossStep<Real>& of, const Vector<Real>& vector,
                             bool posterior_mean, Class x0, Class x_t, Class mask_id, Real weight) {
    const Real pi = vector.pi_of(x_t);
    const bool is_mask = x_t == mask_id;
    const Real u = of.base * pi + (is_mask ? of.to_mask : Real(0));
    const Real u_in_z = of.is_density ? Real(0) : u;
    const Real bar_xt = of.bar_base * pi + (is_mask ? of.bar_to_mask : Real(0));
    const bool is_possible = (u_in_z != 0) | !never_stays(*of.step, x0 == x_t, bar_xt);
    const bool is_bounded = is_possible & (u != 0);
    vb = is_bounded ? of.vb * weight : Real(0);
    ce = of.ce * weight;
    settled = !is_possible || (vb == 0 && ce == 0 && !of.with_terms);
    value = is_possible ? Real(0) : Real(NAN);
    diverges = of.with_terms && is_bounded && !of.predicts_x0;
    is_tilted = posterior_mean && !of.predicts_x0;
  }
};

}  // namespace d3pm
