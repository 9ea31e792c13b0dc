// A token of log p and of its gradient: before its row is read, and what of the row is a number a
// token. csrc/posterior_row.h has the notation. The classes x_t, the mask and the one that is
// forbidden are apart, each once; all others are the rest, where e = exp(logit - top) and
//
//   log p_j = log_leave + log(scale e_j + ub_j), or where ub_j = 0, logit_j - top + log_scale
//   dL/dlogit_j = w_j G_j - level e_j,   w_j = e_j / (e_j + bend ub_j), or where ub_j = 0, 1.
//
// The hardware's exponential, logarithm and reciprocal serve all rows of float.
#pragma once

#include "rows.h"

namespace d3pm::device {

#include "../posterior_row.h"

// log(x), of numbers that are not normal, too.
__device__ inline float any_log(float x) {
  const bool is_small = x < 0x1p-126f;
  return rough_log(is_small ? x * 0x1p32f : x) - (is_small ? 32 * kLn2 : 0.0f);
}
__device__ inline double any_log(double x) { return ::log(x); }

// log(x) of a double x >= 0, to float's last digits but where it is near 0.
template <class Real>
__device__ Real log_of_double(double x) {
  if constexpr (sizeof(Real) == 8) return ::log(x);
  const bool is_small = x < 0x1p-1022;
  const uint64_t bits = bit_cast<uint64_t>(is_small ? x * 0x1p54 : x);
  const int exponent = static_cast<int>(bits >> 52) - 1023 - (is_small ? 54 : 0);
  const uint32_t mantissa = static_cast<uint32_t>(bits >> 29) & 0x7fffffu;
  const float log2 = hardware_log2(bit_cast<float>(mantissa | 0x3f800000u));
  return x > 0 ? kLn2 * (log2 + static_cast<float>(exponent)) : -INFINITY;
}

constexpr int kApart = 3;

// Settled, no other class leads to x_t: its row is not read. Or it is bad, and all is NaN.
template <class Real>
struct alignas(16) KnownPosterior {
  Real keep = 0, u = 1, bar_keep = 1, log_bar_keep = 0, bar_base = 0, bar_mask = 0, tilt = 1;
  int x_t = -1;
  bool settled = true, bad = true;

  KnownPosterior() = default;
  __device__ KnownPosterior(const PPosterior& call, const Vector<Real>& vector, const Runs& runs,
                            int64_t token) {
    const Chain& chain = call.chain;
    if (token >= chain.num_tokens) return;
    const int64_t at = call.x_t[token];
    const StepCoefficients* const found = chain.step(runs.of(token));
    if (!found || !chain.is_class(at)) return;
    const PosteriorToken<Math<Real>, Real> of(*found, vector, call.model, at);
    x_t = static_cast<int>(at);
    settled = of.stays();
    bad = settled && !(found->keep > 0);
    keep = of.keep;
    u = of.u;
    bar_keep = of.bar_keep;
    if (!call.upstream && of.step) log_bar_keep = log_of_double<Real>(of.step->bar_keep);
    bar_base = vector.pi ? of.bar_base : static_cast<Real>(of.bar_base * vector.uniform);
    bar_mask = of.bar_mask;
    tilt = of.tilt;
  }

  // Whether ub leads to classes of the rest.
  __device__ bool is_entered() const { return bar_base > Real(Math<Real>::tiny); }

  // What a settled token has at a class.
  __device__ Real value(bool is_gradient, bool is_xt) const {
    return bad ? Real(NAN) : is_gradient || is_xt ? Real(0) : Real(-INFINITY);
  }
};

// The class `which` of those apart.
template <class Real>
struct ClassApart {
  int j;
  bool is_xt, is_there, is_forbidden;
  Real bar = 0;
  Real logit = -INFINITY, e = 0, upstream = 0;  // of the row; e with the tilt

  __device__ ClassApart(const Chain& chain, const Vector<Real>& vector,
                        const KnownPosterior<Real>& known, int which)
      : is_xt(which == 0) {
    const int mask = static_cast<int>(chain.mask_id), forbidden = static_cast<int>(chain.forbidden);
    j = is_xt ? known.x_t : which == 1 ? mask : which == 2 ? forbidden : -1;
    is_there = j >= 0 && (is_xt || (j != known.x_t && (which == 1 || j != mask)));
    is_forbidden = j == forbidden;
    if (!is_there) return;
    bar = known.bar_base * (vector.pi ? vector.pi[j] : Real(1)) +
          (j == mask ? known.bar_mask : Real(0));
  }

  __device__ bool is_entered() const { return bar > Real(Math<Real>::tiny); }
};

template <class Real>
struct PosteriorRow {
  using M = Math<Real>;
  using Known = KnownPosterior<Real>;
  using Apart = ClassApart<Real>;

  const Known& known;
  const Exponential<Real> exp;
  const Real top, sum, scale, z;

  // From the largest logit, the sum of all e, and x_t's e and ub.
  __device__ PosteriorRow(const Known& known, const Exponential<Real>& exp, Real top, Real sum,
                          Real e_xt, Real bar_xt)
      : known(known),
        exp(exp),
        top(top),
        sum(sum),
        scale(known.bar_keep * M::reciprocal(sum)),
        z(known.u + known.keep * (scale * e_xt + bar_xt)) {}

  __device__ Real log_reach(bool is_xt) const {
    return any_log((known.u + (is_xt ? known.keep : Real(0))) / z);
  }

  // Of a class that ub does not lead to.
  __device__ Real log_scale(Real log_reach) const {
    return known.log_bar_keep - (any_log(sum) - exp.log(top)) + log_reach;
  }

  // Of such a class of the rest; of a settled row, where e is 1, all of it is the value.
  __device__ Real log_scale_of_rest(Real log_leave) const {
    return known.settled ? known.value(false, false) : log_scale(log_leave);
  }

  __device__ Real log_p(const Apart& of, Real log_reach) const {
    const Real tilt = of.is_xt ? known.tilt : Real(1);
    const Real log = any_log(of.is_entered() ? scale * of.e + of.bar : tilt);
    return of.is_entered() ? log_reach + log : (of.logit - top + log) + log_scale(log_reach);
  }

  // Of a class with this ub.
  __device__ Real bend(Real bar) const { return sum / known.bar_keep * bar; }

  // w of a class that ub leads to.
  __device__ Real weight(Real e, Real bar) const {
    return e * M::reciprocal(Max()(e + bend(bar), Real(M::least)));
  }

  __device__ Real weight(const Apart& of) const {
    if (!of.is_there || of.is_forbidden) return 0;
    return of.is_entered() ? weight(of.e, of.bar) : Real(1);
  }
};

// log p of the classes of the rest that ub leads to; of a settled row all of it is the value.
template <class Real>
struct EnteredLogP {
  Real leave, scale, base, more;

  __device__ EnteredLogP(const PosteriorRow<Real>& row, Real log_leave)
      : leave(log_leave), scale(row.scale), base(row.known.bar_base), more(0) {
    if (!row.known.settled) return;
    leave = row.known.value(false, false);
    scale = base = 0;
    more = 1;
  }

  __device__ Real bar(Real pi) const { return base * pi + more; }
  __device__ Real operator()(Real e, Real bar) const { return leave + rough_log(scale * e + bar); }
};

// w G of the rest.
template <class Real>
struct WeightedUpstream {
  Real bend, least_pi;

  explicit __device__ WeightedUpstream(const PosteriorRow<Real>& row)
      : bend(row.bend(row.known.bar_base)),
        least_pi(row.known.is_entered() ? Real(Math<Real>::tiny) / row.known.bar_base
                                        : Real(INFINITY)) {}

  __device__ Real operator()(Real e, Real pi, Real upstream) const {
    const Real v = Max()(e + bend * pi, Real(Math<Real>::least));
    return pi > least_pi ? upstream * (e * Math<Real>::reciprocal(v)) : upstream;
  }
};

// From the sums of G and w G.
template <class Real>
struct PosteriorPull {
  Real level, level_xt;  // of e; level_xt of that of x_t in addition

  __device__ PosteriorPull(const PosteriorRow<Real>& row, Real e_xt, Real sum, Real weighted) {
    const Real inverse = Math<Real>::reciprocal(row.sum);
    level_xt = row.known.keep * (row.known.bar_keep / row.z) * sum * inverse;
    level = (weighted - level_xt * e_xt) * inverse;
  }

  __device__ Real gradient(const ClassApart<Real>& of, Real weight) const {
    return weight * of.upstream - of.e * (level + (of.is_xt ? level_xt : Real(0)));
  }
};

}  // namespace d3pm::device
