// Rows of log p, or of its gradient, that are held whole: one read of what they are made of, one
// write. The more of a row a thread holds, the fewer do the mathematics of its token. Each of four
// lanes has one of the classes apart, the last one none.
#pragma once

#include "posterior_tokens.h"

namespace d3pm::device {

template <class Element, bool kHasPi, bool kIsGradient>
struct PosteriorOfWholeRow {
  static constexpr int kNumbers = 2 * kMostNumbers<Element>;
  static constexpr int kRoles = 4;
  static constexpr int kInputs = kIsGradient ? 2 : 1;
  static_assert(kApart < kRoles);
  using BlockRows = Rows<Element, kNumbers>;
  using Real = typename BlockRows::Real;
  using M = Math<Real>;
  using Known = KnownPosterior<Real>;
  using Row = PosteriorRow<Real>;

  const PPosterior& call;
  const BlockRows& rows;
  const Vector<Real>& vector;
  const Known known;
  const int64_t first;  // number of the row
  const bool inside;
  const int num_classes;
  Element *const staged, *const staged_upstream;
  ClassApart<Real> own;
  Real top = 0;

  __device__ PosteriorOfWholeRow(const PPosterior& call, const BlockRows& rows,
                                 const Vector<Real>& vector, const Known& known, int64_t token,
                                 Element* staged, Element* staged_upstream)
      : call(call),
        rows(rows),
        vector(vector),
        known(known),
        first(token * call.chain.num_classes),
        inside(token < call.chain.num_tokens),
        num_classes(static_cast<int>(call.chain.num_classes)),
        staged(staged),
        staged_upstream(staged_upstream),
        own(call.chain, vector, known, threadIdx.x % kRoles) {}

  __device__ void run() {
    Real result = known.value(kIsGradient, own.is_xt);  // at this lane's class
    if (rows.all(known.settled)) {
      if (inside) rows.fill(out(), num_classes, known.value(kIsGradient, false));
    } else {
      Real e[kNumbers], g[kIsGradient ? kNumbers : 1];
      read(e, g);
      const Row row = exponentiate(e);
      const Real of_class = kIsGradient ? write_gradient(row, e, g) : write_log_p(row, e);
      if (!known.settled) result = of_class;
    }
    rows.meet();
    if (inside && own.is_there && rows.lane() < kRoles)
      out()[own.j] = Memory<Element>::narrow(result);
  }

 private:
  __device__ Element* out() const { return static_cast<Element*>(call.out) + first; }

  // Fills in the logits and G of the rest, -inf and 0 for other classes.
  __device__ void read(Real* logits, Real* g) {
    const bool reads = !known.settled;
    rows.begin_stage(static_cast<const Element*>(call.logits) + first, num_classes, reads, staged);
    if (kIsGradient)
      rows.begin_stage(static_cast<const Element*>(call.upstream) + first, num_classes, reads,
                       staged_upstream, 0);
    wait_for_copies();
    rows.meet();
    const bool is_apart = own.is_there && reads;
    if (is_apart) {
      if (!own.is_forbidden) own.logit = Memory<Element>::widen(staged[own.j]);
      if (kIsGradient) own.upstream = Memory<Element>::widen(staged_upstream[own.j]);
    }
    rows.meet();
    if (is_apart) {
      staged[own.j] = Memory<Element>::narrow(-INFINITY);
      if (kIsGradient) staged_upstream[own.j] = Memory<Element>::narrow(0);
    }
    rows.meet();
    rows.take(staged, logits);
    if (kIsGradient) rows.take(staged_upstream, g);
  }

  template <class Number>
  static __device__ Number of_role(int role, Number value) {
    return __shfl_sync(0xffffffff, value, role, kRoles);
  }

  template <class Fold>
  __device__ Real over_row(const Real* values, Real first, Fold fold) const {
    Real of[4] = {first, values[0], values[1], values[2]};
#pragma unroll
    for (int i = 3; i < kNumbers; ++i) of[i % 4] = fold(of[i % 4], values[i]);
    return rows.reduce(fold(fold(of[0], of[1]), fold(of[2], of[3])), fold);
  }

  // Of logits makes e.
  __device__ Row exponentiate(Real (&e)[kNumbers]) {
    const Real largest = over_row(e, own.logit, Max());
    if (!known.settled) top = largest;
    const Exponential<Real> exp(top);
#pragma unroll
    for (Real& number : e) number = exp(number);
    const Real of_rest = over_row(e, 0, Sum());
    own.e = exp(own.logit) * (own.is_xt ? known.tilt : Real(1));
    const Real of_apart = device::reduce(kRoles, own.e, Sum());
    return {known, exp, top, of_rest + of_apart, of_role(0, own.e), of_role(0, own.bar)};
  }

  // Calls body(i, pi) for the numbers of this thread, four at a time, with pi of these.
  template <class Body>
  __device__ void each_four(const Body& body) const {
#pragma unroll
    for (int i = 0; i < kNumbers; i += 4) {
      Real pi[4] = {1, 1, 1, 1};
      if constexpr (kHasPi) rows.read_four(vector.pi, i, num_classes, pi);
      body(i, pi);
    }
  }

  // Turns e into log p, writes it, and returns that of this lane's class.
  __device__ Real write_log_p(const Row& row, Real* e) {
    const Real log_reach = row.log_reach(own.is_xt);
    const Real log_leave = of_role(kRoles - 1, log_reach);
    const Real log_scale = row.log_scale_of_rest(log_leave);
    bool all_done = true;
    if (!kHasPi && rows.all(known.settled || !known.is_entered())) {
      rows.take(staged, e);
#pragma unroll
      for (int i = 0; i < kNumbers; ++i) e[i] = (e[i] - top) + log_scale;
    } else {
      const EnteredLogP<Real> entered(row, log_leave);
      each_four([&](int i, const Real* pi) {
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const Real bar = entered.bar(pi[k]);
          all_done &= bar > Real(M::tiny);
          e[i + k] = entered(e[i + k], bar);
        }
      });
      if (kHasPi) all_done = rows.reduce(all_done ? 0 : 1, Max()) == 0;
    }
    write(e);
    if (!rows.all(all_done)) {
      rows.meet();
      write_others(log_scale);
    }
    return row.log_p(own, log_reach);
  }

  // Writes log p of the classes that ub does not lead to.
  __device__ void write_others(Real log_scale) const {
    if (known.settled) return;
    const Element* const logits = static_cast<const Element*>(call.logits) + first;
#pragma unroll 1
    for (int j = rows.lane(); j < num_classes; j += rows.threads()) {
      if (known.bar_base * (kHasPi ? vector.pi[j] : Real(1)) > Real(M::tiny)) continue;
      const Real logit = Memory<Element>::widen(logits[j]);
      out()[j] = Memory<Element>::narrow((logit - top) + log_scale);
    }
  }

  __device__ void write(const Real* values) const {
    rows.write_whole(out(), num_classes, inside, values, staged);
  }

  // Turns e into the gradient, given G, writes it, and returns that of this lane's class.
  __device__ Real write_gradient(const Row& row, Real* e, Real* g) const {
    const Real sum_of_rest = over_row(g, 0, Sum());
    if (!rows.all(!known.is_entered())) {
      const WeightedUpstream<Real> weighted(row);
      each_four([&](int i, const Real* pi) {
#pragma unroll
        for (int k = 0; k < 4; ++k) g[i + k] = weighted(e[i + k], pi[k], g[i + k]);
      });
    }
    const Real weight = row.weight(own);
    Real sums[] = {own.upstream, weight * own.upstream};
    device::reduce(kRoles, sums, Sum());
    sums[0] += sum_of_rest;
    sums[1] += over_row(g, 0, Sum());
    PosteriorPull<Real> pull(row, of_role(0, own.e), sums[0], sums[1]);
    if (known.settled) pull.level = known.value(true, false);
#pragma unroll
    for (int i = 0; i < kNumbers; ++i) e[i] = g[i] - e[i] * pull.level;
    write(e);
    return pull.gradient(own, weight);
  }
};

// The rows of a group of threads, `times` after each other. What is known of their
// tokens before they are read takes one thread a token.
template <class Element, bool kHasPi, bool kIsGradient>
__global__ void __launch_bounds__(kMostThreads, 1) posterior_of_whole_rows(
    const PPosterior call, const Vector<typename Memory<Element>::Real> vector, const Runs runs,
    const typename PosteriorOfWholeRow<Element, kHasPi, kIsGradient>::BlockRows rows,
    const int times) {
  using OfRow = PosteriorOfWholeRow<Element, kHasPi, kIsGradient>;
  using Known = typename OfRow::Known;
  D3PM_DYNAMIC_SHARED(Element, shared);
  Element* const staged = rows.staged(shared);
  const size_t bytes = rows.shared_bytes();
  const int count = times * rows.rows_at_a_time();
  Known* const known =
      reinterpret_cast<Known*>(reinterpret_cast<char*>(shared) + OfRow::kInputs * bytes) +
      rows.group_in_block() * count;
  const int64_t first = rows.group() * count;
  if (const int i = rows.in_group(); i < count) known[i] = Known(call, vector, runs, first + i);
  rows.meet();
  for (int time = 0; time < times; ++time) {  // the same for all threads: they stay together
    const int i = time * rows.rows_at_a_time() + rows.row_in_group();
    OfRow(call, rows, vector, known[i], first + i, staged, staged + bytes / sizeof(Element)).run();
    rows.meet();
  }
}

}  // namespace d3pm::device
