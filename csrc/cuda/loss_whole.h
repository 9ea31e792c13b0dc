// Rows that are held whole: one read of the logits, one write of the gradient. The more of a row a
// thread holds, the fewer do the mathematics of its token. Four lanes share that of the classes
// apart: x_0, x_t, the mask, and the part of the rest that all its classes have in common.
#pragma once

#include "loss_curve.h"

namespace d3pm::device {

template <class Element, bool kHasPi, int kThreads>
struct LossOfWholeRow {
  // As many as leave registers for pi and, but in long rows, for m.
  static constexpr bool kKeepsM = kThreads > 0,
                        kTwice = sizeof(Element) < 8 && (kKeepsM || !kHasPi);
  static constexpr int kNumbers = (kTwice ? 2 : 1) * kMostNumbers<Element>;
  static constexpr int kRoles = 4;
  using BlockRows = Rows<Element, kNumbers, kThreads>;
  using Real = typename BlockRows::Real;
  using M = Math<Real>;
  using Token = TokenRow<Real>;
  using Curve = LossCurve<Element, kHasPi>;

  const Loss& call;
  const BlockRows& rows;
  const LossVector<Real>& vector;
  Token token;
  Element* const staged;
  const int num_logits, role;
  int own = 0;            // the class of this lane
  bool is_apart = false;  // whether there is one
  Real top = 0;

  __device__ LossOfWholeRow(const Loss& call, const BlockRows& rows, const LossVector<Real>& vector,
                            const KnownToken<Real>& known, int64_t token, Element* staged)
      : call(call),
        rows(rows),
        vector(vector),
        token(known, token, token < call.chain.num_tokens),
        staged(staged),
        num_logits(static_cast<int>(call.num_logits)),
        role(threadIdx.x % kRoles) {
    const int mask = static_cast<int>(call.chain.mask_id);
    const int second = role == 1 ? known.x_t : mask;
    own = role == 0 ? known.x0 : second;
    const bool has_class =
        (role == 0) | ((role == 1) & (known.same == 0)) | ((role == 2) & known.has_mask_apart);
    is_apart = has_class && !known.settled;
  }

  // factor: of the gradient.
  __device__ void run(Real factor) {
    if (rows.all(token.settled)) {
      if (token.inside && call.grad) rows.fill(grad(), num_logits, token.value);
      return;
    }
    Real e[kNumbers], m[kKeepsM ? kNumbers : 4];
    const Real e_own = read(e);
    token.solve();
    const Curve curve(call, token);
    const Apart apart(*this, curve);
    if (is_curved()) sum_over_rest(curve, apart, e, m);
    token.conclude({0, apart.pull_x0}, {apart.terms, apart.pull_others});
    if (!token.settled && rows.is_first_thread()) token.write_loss(call);
    if (call.grad) write_gradient(curve, factor, e, m, apart.pull, e_own);
  }

 private:
  // Whether h is not 1 on the rest of any row of the warp.
  __device__ bool is_curved() const { return kHasPi || !rows.all(!token.is_curved()); }

  // Of this lane's class.
  __device__ bool has_logit() const {
    return is_apart && static_cast<unsigned>(own) < static_cast<unsigned>(num_logits);
  }

  __device__ Element* grad() const {
    return static_cast<Element*>(call.grad) + token.token * call.num_logits;
  }

  // Fills in e of the rest, which is 0 for other classes, and returns that of this lane's class.
  __device__ Real read(Real* e) {
    const Element* const row = static_cast<const Element*>(call.logits);
    rows.stage(row + token.token * call.num_logits, num_logits, !token.settled, staged);
    rows.meet();
    const int forbidden = static_cast<int>(call.chain.forbidden);
    const Real logit =
        is_apart ? BlockRows::logit(staged, own, num_logits, forbidden) : Real(-INFINITY);
    rows.meet();
    const int hidden = role == 3 ? forbidden : is_apart ? own : -1;
    if (hidden >= 0 && hidden < num_logits) staged[hidden] = Memory<Element>::narrow(-INFINITY);
    rows.meet();
    const Real top_of_thread = Max()(logit, rows.take_largest(staged, e));
    const Real largest = rows.reduce(top_of_thread, Max());
    if (!token.settled) top = largest;
    const Exponential<Real> exp(top);
    Real sums[4] = {};
#pragma unroll
    for (int i = 0; i < kNumbers; ++i) sums[i % 4] += e[i] = exp(e[i]);
    token.e_rest = rows.reduce((sums[0] + sums[1]) + (sums[2] + sums[3]), Sum());
    const Real e_own = exp(logit);
    token.e_x0 = of_role(0, e_own);
    token.e_xt = of_role(1, e_own);
    token.e_mask = of_role(2, e_own);
    token.below_top = -of_role(0, exp.log(logit));
    return e_own;
  }

  template <class Number>
  static __device__ Number of_role(int role, Number value) {
    return __shfl_sync(0xffffffff, value, role, kRoles);
  }

  // Calls body(i, pi) for the numbers of this thread, four at a time, with pi of these.
  template <class Body>
  __device__ void each_four(const Body& body) const {
#pragma unroll
    for (int i = 0; i < kNumbers; i += 4) {
      Real pi[4] = {};
      if constexpr (kHasPi) read_pi(i, pi);
      body(i, pi);
    }
  }

  __device__ void read_pi(int i, Real (&pi)[4]) const {
    constexpr int kOfVector = Pack<Real>::kSize;
#pragma unroll
    for (int k = 0; k < 4; k += kOfVector) {
      const int j = class_of(i + k);
      Pack<Real> pack = {};
      if (rows.aligned) {
        if (j < num_logits) pack = *reinterpret_cast<const Pack<Real>*>(vector.pi + j);
      } else {
#pragma unroll
        for (int n = 0; n < kOfVector; ++n)
          if (j + n < num_logits) pack.values[n] = vector.pi[j + n];
      }
#pragma unroll
      for (int n = 0; n < kOfVector; ++n) pi[k + n] = pack.values[n];
    }
  }

  __device__ int class_of(int number) const {
    return rows.first(0, number / BlockRows::kWidth) + number % BlockRows::kWidth;
  }

  // The mathematics of the classes apart. Each of four lanes has a logarithm to compute.
  struct Apart {
    Real pull, phi;  // of this lane's class
    Real terms, pull_x0, pull_others, pi, phi_of_shift;

    __device__ Apart(const LossOfWholeRow& of_row, const Curve& curve) {
      const Token& token = of_row.token;
      const int role = of_row.role;
      const auto x0 = token.at_x0(), x_t = token.at_xt(), mask = token.at_mask();
      auto of = role == 0 ? x0 : role == 1 ? x_t : mask;
      if (role == 3) of.g = curve.line.shift, of.y = curve.line.ratio;
      phi = M::phi(of.g, of.y);
      if (role == 0) phi = token.phi_of_x0(of, phi);
      const auto part = token.part(of, phi);
      pull = of_row.is_apart ? part.pull : Real(0);
      const Real term = of_row.is_apart ? part.term : Real(0);
      Real sums[] = {term, role == 0 ? Real(0) : pull, of_row.pi_apart()};
      device::reduce(kRoles, sums, Sum());
      terms = sums[0];
      pull_others = sums[1];
      pi = sums[2];
      pull_x0 = of_role(0, pull);
      phi_of_shift = of_role(3, phi);
    }
  };

  // Fills in m, and sums phi and h.
  __device__ void sum_over_rest(const Curve& curve, const Apart& apart, const Real* e, Real* m) {
    Real of_h[4] = {}, of_log[2] = {};
    each_four([&](int i, const Real* pi) {
      curve.bend_four(e + i, pi, kKeepsM ? m + i : m, of_h, of_log[i / 4 % 2]);
    });
    Real sums[] = {(of_h[0] + of_h[1]) + (of_h[2] + of_h[3]), of_log[0] + of_log[1]};
    rows.reduce(sums, Sum());
    token.sum_h = sums[0];
    const Real pi = (kHasPi ? Real(1) : static_cast<Real>(num_logits)) - apart.pi;
    const bool keeps = curve.sum_phi(apart.phi_of_shift, pi, token.e_rest, sums[1], token.sum_phi);
    if (!rows.all(keeps || !token.is_curved())) {
      const Real exact =
          curve.exact_sum_phi([&] { return sum_phi_by_four(curve, e, pi, apart.phi_of_shift); },
                              [&](bool is_needed) { return sum_phi_by_one(curve, is_needed); });
      if (!keeps) token.sum_phi = exact;
    }
    if (!kHasPi) token.sum_phi *= static_cast<Real>(vector.uniform);
  }

  // pi of this lane's class, or whether it is there where all pi are the same.
  __device__ Real pi_apart() const {
    if (!is_apart) return 0;
    if constexpr (kHasPi) return vector.pi[own];
    return has_logit() ? 1 : 0;
  }

  // Over no class where it is not needed.
  __device__ Real sum_phi_by_one(const Curve& curve, bool is_needed) const {
    const Exponential<Real> exp(top);
    const int x0 = of_role(0, own), x_t = of_role(1, own), mask = of_role(2, own);
    Real sum = 0;
#pragma unroll 1
    for (int j = is_needed ? rows.lane() : num_logits; j < num_logits; j += rows.threads()) {
      if (j == x0 || j == x_t || j == mask) continue;
      const Real of = exp(Memory<Element>::widen(staged[j]));
      sum += curve.phi(of, kHasPi ? vector.pi[j] : Real(1));
    }
    return rows.reduce(sum, Sum());
  }

  __device__ Real sum_phi_by_four(const Curve& curve, const Real* e, Real count,
                                  Real of_shift) const {
    Real sum = 0;
    int there = 0;
#pragma unroll
    for (int i = 0; i < kNumbers; i += 4) sum += curve.phi_of_four(e + i, there);
    Real sums[] = {sum, static_cast<Real>(there)};
    rows.reduce(sums, Sum());
    return curve.with_zeros(sums[0], count - sums[1], of_shift);
  }

  __device__ void write_gradient(const Curve& curve, Real factor, Real* e, const Real* m, Real pull,
                                 Real e_own) {
    const LossSlope<Element, kHasPi> slope(token, curve, factor);
    if (is_curved()) {
      each_four([&](int i, const Real* pi) {
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const Real of = e[i + k];
          e[i + k] = slope(of, kKeepsM ? m[i + k] : curve.m(of, pi[k]), pi[k]);
        }
      });
    } else {
#pragma unroll
      for (int i = 0; i < kNumbers; ++i) e[i] *= slope.flat;
    }
    rows.write_whole(grad(), num_logits, token.inside, e, staged);
    rows.meet();
    if (!has_logit() || rows.lane() >= kRoles) return;
    const Real s = role == 1 ? token.s_xt() : token.s_mask();
    const Real value = role == 0 ? token.grad_x0 : token.gradient(pull, s, e_own);
    grad()[own] = Memory<Element>::narrow(value * factor);
  }
};

// The rows of a group of threads, up to `most_times` after each other. What is known of their
// tokens before they are read takes one thread a token.
template <class Element, bool kHasPi, int kThreads>
__global__ void __launch_bounds__(kMostThreads, 1)
    loss_of_whole_rows(const Loss call, const LossVector<typename Memory<Element>::Real> vector,
                       const typename LossOfWholeRow<Element, kHasPi, kThreads>::BlockRows rows,
                       const int most_times) {
  using Real = typename Memory<Element>::Real;
  D3PM_DYNAMIC_SHARED(Element, shared);
  Element* const staged = rows.staged(shared);
  const int times = kThreads ? most_times : 1, count = times * rows.rows_at_a_time();
  KnownToken<Real>* const known =
      reinterpret_cast<KnownToken<Real>*>(reinterpret_cast<char*>(shared) + rows.shared_bytes()) +
      threadIdx.x / rows.together() * count;
  const int64_t first = rows.group() * count;
  {
    const auto of = vector.template known<kHasPi>();
    const int i = rows.in_group();
    const int64_t token = first + i;
    const bool inside = i < count && token < call.chain.num_tokens;
    LossStep<Real> step;
    KnownToken<Real> found(call, of, token, inside, step);
    if (found.settled) TokenRow<Real>(found, token, inside).write_loss(call);
    if (!rows.all(found.settled)) found.look_up(call, of, step);
    if (i < count) known[i] = found;
  }
  rows.meet();
  const Real factor = call.factor<Real>();
  for (int time = 0; time < times; ++time) {  // the same for all threads: they stay together
    const int i = time * rows.rows_at_a_time() + rows.row_in_group();
    LossOfWholeRow<Element, kHasPi, kThreads>(call, rows, vector, known[i], first + i, staged)
        .run(factor);
    rows.meet();
  }
}

}  // namespace d3pm::device
