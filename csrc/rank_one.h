// One step of a rank-one chain, as all kernels see it.
//
// Notation: Q = Q_{s->t} = a I + 1 u^T, Qbar = Qbar_s = A I + 1 ub^T, s_j = softmax(logits)_j,
//   f_j = A s_j + ub_j            what the model says of x_s before it sees x_t
//   d_j = A [j = x_0] + ub_j      the truth in its place
//   Z = u + a f[x_t],  Zq = u + a d[x_t]   with u = u[x_t]
//   p_j = (u + a [j = x_t]) f_j / Z,  q_j = (u + a [j = x_t]) d_j / Zq.
//
// The posterior mean is the joint model of a tilted s: s[x_t] times Qbar_t[j, x_t] /
// Qbar_t[x_t, x_t] for any j != x_t, normalized.
#pragma once

#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#define D3PM_HOST_DEVICE __host__ __device__
#define D3PM_MEMBER
#else
#define D3PM_HOST_DEVICE
#define D3PM_MEMBER __attribute__((always_inline))
#endif

namespace d3pm {

// A row of the table of steps, see RankOneTransition.step_coefficients.
struct StepCoefficients {
  double keep, base, mask, bar_keep, bar_base, bar_mask, target_time;
};

// The vector u_j = base pi_j + mask [j = mask_id]; pi is 1/K where the pointer is null.
template <class Real>
struct Vector {
  const Real* pi;
  double uniform;
  int64_t mask_id;

  D3PM_HOST_DEVICE Real pi_of(int64_t j) const { return pi ? pi[j] : static_cast<Real>(uniform); }

  D3PM_HOST_DEVICE double operator()(double base, double mask, int64_t j) const {
    return base * (pi ? static_cast<double>(pi[j]) : uniform) + (j == mask_id ? mask : 0.0);
  }
};

// Below it a probability counts as zero.
template <class Real>
constexpr double kTiny = sizeof(Real) == 4 ? 1e-30 : 1e-290;

// Abar in the type of the loss, kept above zero, so that a product of it with a probability that
// counts is a normal number: a class that it alone leads to may be next to impossible, but where
// p excludes it the loss is infinite.
template <class Real>
D3PM_HOST_DEVICE Real at_least_normal(double bar_keep) {
  const double least = sizeof(Real) == 4 ? 0x1p-120 : 0x1p-1000;
  const Real rounded = static_cast<Real>(bar_keep), smallest = static_cast<Real>(least);
  return bar_keep > 0 && rounded < smallest ? smallest : rounded;
}

// Qbar_t[x_t, x_t]-tilt of s[x_t]; 1 where no other class than x_t can lead to x_t.
D3PM_HOST_DEVICE inline double posterior_mean_tilt(double a, double u, double bar_keep,
                                                   double bar_xt) {
  const double other = a * bar_xt + u;
  return other > 0 ? other / (a * bar_keep + other) : 1.0;
}

// Whether the chain cannot go from x_0 to x_t, where no other class than x_t leads to x_t.
D3PM_HOST_DEVICE inline bool never_stays(const StepCoefficients& step, bool same, double bar_xt) {
  return step.keep * (bar_xt + (same ? step.bar_keep : 0)) == 0;
}

}  // namespace d3pm
