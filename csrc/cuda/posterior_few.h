// Log p of rows of few classes, or its gradient: a thread a row.
#pragma once

#include "posterior_tokens.h"
#include "rows_few.h"

namespace d3pm::device {

// Of a settled row the mathematics is to no purpose, for the warp stays together.
template <class Element, bool kMayHavePi, bool kIsGradient, int kClasses>
struct PosteriorOfFewClasses {
  using RowHere = typename RowsOfWarp<Element, kClasses>::Row;
  using Real = typename Memory<Element>::Real;
  using M = Math<Real>;
  using Row = PosteriorRow<Real>;
  static constexpr int kMost = RowHere::kMost;

  const PPosterior& call;
  const Vector<Real>& vector;
  const KnownPosterior<Real>& known;
  const RowHere& here;      // in the end the result
  const RowHere& upstream;  // the same where there is none
  const int64_t token;
  const int classes;
  ClassApart<Real> apart[kApart];
  Real top = 0;
  Real e[kMost], of[kMost];  // of: logit - top, or w G

  __device__ PosteriorOfFewClasses(const PPosterior& call, const Vector<Real>& vector,
                                   const KnownPosterior<Real>& known, const RowHere& here,
                                   const RowHere& upstream, int64_t token)
      : call(call),
        vector(vector),
        known(known),
        here(here),
        upstream(upstream),
        token(token),
        classes(here.classes),
        apart{{call.chain, vector, known, 0},
              {call.chain, vector, known, 1},
              {call.chain, vector, known, 2}} {}

  __device__ void run() {
    const Row row = read();
    if constexpr (kIsGradient)
      put_gradient(row);
    else
      put_log_p(row);
  }

 private:
  // Calls body(class) for the classes apart that there are.
  template <class Body>
  __device__ void each_apart(const Body& body) {
#pragma unroll
    for (int which = 0; which < kApart; ++which)
      if (apart[which].is_there && !known.settled) body(apart[which]);
  }

  __device__ bool has_pi() const { return (kMayHavePi && kClasses) || vector.pi; }
  __device__ Real pi(int j) const { return has_pi() && j < classes ? vector.pi[j] : Real(1); }

  // Fills in e of the rest, which is 0 for other classes.
  __device__ Row read() {
    each_apart([&](ClassApart<Real>& each) {
      if (!each.is_forbidden) each.logit = here[each.j];
      if (kIsGradient) each.upstream = upstream[each.j];
    });
    Real largest = -INFINITY;
    each_apart([&](ClassApart<Real>& each) {
      largest = Max()(largest, each.logit);
      here.set(each.j, -INFINITY);
      if (kIsGradient) upstream.set(each.j, 0);
    });
    largest = Max()(largest, here.take(e));
    if (!known.settled) top = largest;
    const Exponential<Real> exp(top);
    Real sums[4] = {};
    here.each_four([&](int i) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        if (!kIsGradient) of[i + k] = e[i + k] - top;
        e[i + k] = i + k < classes ? exp(e[i + k]) : Real(0);
        if (i + k < classes) sums[k] += e[i + k];
      }
    });
    Real sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    each_apart([&](ClassApart<Real>& each) {
      each.e = exp(each.logit) * (each.is_xt ? known.tilt : Real(1));
      sum += each.e;
    });
    return {known, exp, top, sum, apart[0].e, apart[0].bar};
  }

  __device__ void put_log_p(const Row& row) {
    const Real log_leave = row.log_reach(false), log_scale = row.log_scale_of_rest(log_leave);
    if (!has_pi() && here.all(known.settled || !known.is_entered())) {
      here.put_all([&](int i) { return of[i] + log_scale; });
    } else {
      const EnteredLogP<Real> entered(row, log_leave);
      bool all_done = true;
      here.put_all([&](int i) {
        const Real bar = entered.bar(pi(i));
        all_done &= bar > Real(M::tiny);
        return entered(e[i], bar);
      });
      if (!all_done && !known.settled) put_others(log_scale);
    }
    each_apart([&](const ClassApart<Real>& each) {
      here.set(each.j, row.log_p(each, row.log_reach(each.is_xt)));
    });
    if (known.settled) here.put(known.x_t, known.value(false, true));
  }

  // Those of classes that ub does not lead to.
  __device__ void put_others(Real log_scale) const {
    const Element* const logits = static_cast<const Element*>(call.logits) + token * classes;
#pragma unroll 1
    for (int j = 0; j < classes; ++j)
      if (!(known.bar_base * pi(j) > Real(M::tiny)))
        here.set(j, (Memory<Element>::widen(logits[j]) - top) + log_scale);
  }

  __device__ void put_gradient(const Row& row) {
    Real sums[2] = {};
    upstream.take(of);
    const auto add = [&] {
      Real parts[4] = {};
      here.each_four([&](int i) {
#pragma unroll
        for (int k = 0; k < 4; ++k)
          if (i + k < classes) parts[k] += of[i + k];
      });
      return (parts[0] + parts[1]) + (parts[2] + parts[3]);
    };
    sums[0] = sums[1] = add();
    if (!here.all(known.settled || !known.is_entered())) {
      const WeightedUpstream<Real> weighted(row);
      here.each_four([&](int i) {
#pragma unroll
        for (int k = 0; k < 4; ++k) of[i + k] = weighted(e[i + k], pi(i + k), of[i + k]);
      });
      sums[1] = add();
    }
    each_apart([&](const ClassApart<Real>& each) {
      sums[0] += each.upstream;
      sums[1] += row.weight(each) * each.upstream;
    });
    PosteriorPull<Real> pull(row, apart[0].e, sums[0], sums[1]);
    if (known.settled) pull.level = known.value(true, false);
    here.put_all([&](int i) { return of[i] - e[i] * pull.level; });
    each_apart([&](const ClassApart<Real>& each) {
      here.set(each.j, pull.gradient(each, row.weight(each)));
    });
  }
};

// Of any number of classes one serves chains with and without a pi.
template <class Element, bool kMayHavePi, bool kIsGradient, int kClasses>
__global__ void __launch_bounds__(FewClasses<Element>::kRows)
    posterior_of_few_classes(const PPosterior call,
                             const Vector<typename Memory<Element>::Real> any_vector,
                             const Runs runs, const FewClasses<Element> layout) {
  using Real = typename Memory<Element>::Real;
  D3PM_DYNAMIC_SHARED(Element, shared);
  Vector<Real> vector = any_vector;
  if (!kMayHavePi) vector.pi = nullptr;  // told the compiler
  const RowsOfWarp<Element, kClasses> rows(layout, call.chain.num_tokens, shared),
      of_upstream(layout, call.chain.num_tokens, shared + kIsGradient * layout.num_elements());
  const KnownPosterior<Real> known(call, vector, runs, rows.number());
  const auto here = rows.row(!known.settled), upstream = of_upstream.row(!known.settled);
  if (here.all(known.settled)) {
    here.put_all([&](int i) { return known.value(kIsGradient, i == known.x_t); });
  } else {
    rows.begin_read(call.logits);
    if (kIsGradient) of_upstream.begin_read(call.upstream);
    rows.finish_read();
    PosteriorOfFewClasses<Element, kMayHavePi, kIsGradient, kClasses>(call, vector, known, here,
                                                                      upstream, rows.number())
        .run();
  }
  rows.write(call.out);
}

}  // namespace d3pm::device
