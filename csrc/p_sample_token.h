// What a token's draw of p(x_s | x_t) is decided by, in double on the CPU and by CUDA.
//
// With u = u[x_t], p(j) Z = u A s_j + u ub_j + a f[x_t] [j = x_t]: one number chooses among the
// model (mass u A), pi (u W), the mask (u M) and staying; the other draws the class. Since
// Z >= u + a ub[x_t], most tokens are seen to stay before their row is read.
#pragma once

#include "calls.h"

namespace d3pm {

struct PSampleToken {
  int64_t x_t;
  bool predicts_x0, only_mask;  // only_mask: whether pi has no mass and x_t is the mask
  double keep, u, bar_keep, bar_xt;
  double model, pi, mask;  // running sums of masses

  PSampleToken() = default;
  D3PM_HOST_DEVICE PSampleToken(const StepCoefficients& step, const Vector<double>& vector,
                                bool predicts_x0, int64_t x_t)
      : x_t(x_t),
        predicts_x0(predicts_x0),
        only_mask(step.bar_base == 0 && x_t == vector.mask_id),
        keep(step.keep),
        u(vector(step.base, step.mask, x_t)),
        bar_keep(step.bar_keep),
        bar_xt(vector(step.bar_base, step.bar_mask, x_t)),
        model(u * bar_keep),
        pi(model + u * step.bar_base),
        mask(pi + u * step.bar_mask) {}

  // Whether it stays whatever its row.
  D3PM_HOST_DEVICE bool stays(double choice) const {
    if (predicts_x0) return false;
    const double least = choice * (u + keep * bar_xt);
    return least >= mask || (least >= model && only_mask);
  }

  // What s[x_t] is multiplied by.
  D3PM_HOST_DEVICE double tilt(bool posterior_mean) const {
    return posterior_mean && !predicts_x0 ? posterior_mean_tilt(keep, u, bar_keep, bar_xt) : 1.0;
  }

  // The class drawn, given what the row has at x_t, tilted, and in all; of_model() draws from it.
  template <class OfModel>
  D3PM_HOST_DEVICE int64_t draw(const PSample& call, const Uniforms& random, double mass_xt,
                                double total, const OfModel& of_model) const {
    const double here = bar_keep * mass_xt / total + bar_xt;
    const double threshold = random.choice * (u + keep * here);
    if (predicts_x0 || threshold < model) return of_model();
    if (threshold < pi) return draw_base(random.draw, call.cdf, call.chain.num_classes);
    return threshold < mask ? call.chain.mask_id : x_t;
  }
};

}  // namespace d3pm
