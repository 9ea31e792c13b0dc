// Rows of log p, or of its gradient, that no block can hold, and those of double: read for each
// pass, from the second one on out of the cache.
#pragma once

#include "posterior_tokens.h"

namespace d3pm::device {

template <class Element>
struct PosteriorOfLongRow {
  static constexpr int kNumbers = Pack<Element>::kSize;
  using BlockRows = Rows<Element, kNumbers>;
  using Real = typename BlockRows::Real;
  using M = Math<Real>;

  const PPosterior& call;
  const BlockRows& rows;
  const Vector<Real>& vector;
  const KnownPosterior<Real> known;
  const bool inside;
  const int64_t first;  // number of the row
  const int num_classes;
  const bool is_gradient;
  ClassApart<Real> apart[kApart];
  Real top = -INFINITY;
  Real e[kNumbers], g[kNumbers];

  __device__ PosteriorOfLongRow(const PPosterior& call, const BlockRows& rows,
                                const Vector<Real>& vector, const Runs& runs)
      : call(call),
        rows(rows),
        vector(vector),
        known(call, vector, runs, rows.row()),
        inside(rows.row() < call.chain.num_tokens),
        first((inside ? rows.row() : 0) * call.chain.num_classes),
        num_classes(static_cast<int>(call.chain.num_classes)),
        is_gradient(call.upstream),
        apart{{call.chain, vector, known, 0},
              {call.chain, vector, known, 1},
              {call.chain, vector, known, 2}} {}

  __device__ void run() {
    const PosteriorRow<Real> row = predict();
    is_gradient ? write_gradient(row) : write_log_p(row);
  }

 private:
  __device__ Element* out() const { return static_cast<Element*>(call.out) + first; }

  __device__ const Element* row_of(const void* tensor) const {
    return static_cast<const Element*>(tensor) + first;
  }

  __device__ uint64_t places(int start) const {
    uint64_t found = 0;
    for (const ClassApart<Real>& of : apart) found |= rows.place(of.j - start);
    return found;
  }

  // Fills in the logits of a part of the rest, -inf for other classes.
  __device__ void read(int start) {
    rows.read(row_of(call.logits), start, num_classes, e);
    BlockRows::hide(places(start), e);
  }

  __device__ void read_upstream(int start) {
    rows.read(row_of(call.upstream), start, num_classes, g, 0);
    const uint64_t hidden = places(start);
#pragma unroll
    for (int i = 0; i < kNumbers; ++i)
      if (hidden >> i & 1) g[i] = 0;
  }

  __device__ PosteriorRow<Real> predict() {
    for (ClassApart<Real>& of : apart) {
      if (!of.is_there || !inside) continue;
      of.logit = BlockRows::logit(row_of(call.logits), of.j, num_classes, call.chain.forbidden);
      if (is_gradient) of.upstream = Memory<Element>::widen(row_of(call.upstream)[of.j]);
      top = Max()(top, of.logit);
    }
    rows.each_part([&](int start) {
      read(start);
      for (Real logit : e) top = Max()(top, logit);
    });
    top = rows.reduce(top, Max());  // of a settled row to no purpose: the warp stays together
    const Exponential<Real> exp(top);
    Real sum = 0;
    rows.each_part([&](int start) {
      read(start);
      for (Real logit : e) sum += exp(logit);
    });
    sum = rows.reduce(sum, Sum());
    for (ClassApart<Real>& of : apart)
      sum += of.e = exp(of.logit) * (of.is_xt ? known.tilt : Real(1));
    return {known, exp, top, sum, apart[0].e, apart[0].bar};
  }

  // Writes body(i, ub) for the numbers i of parts, and of(class) for the classes apart.
  template <class Body, class Of>
  __device__ void write(const Body& body, const Of& of) {
    rows.each_part([&](int start) {
      read(start);
      if (is_gradient) read_upstream(start);
      Real values[kNumbers];
      rows.each_number(start, [&](int i, int j) {
        values[i] = known.settled ? known.value(is_gradient, false) : body(i, bar(j));
      });
      rows.write(out(), start, inside ? num_classes : 0, values);
    });
    rows.meet();
    if (!inside || !rows.is_first_thread()) return;
    for (const ClassApart<Real>& each : apart) {
      if (!each.is_there) continue;
      const Real value = known.settled ? known.value(is_gradient, each.is_xt) : of(each);
      out()[each.j] = Memory<Element>::narrow(value);
    }
  }

  __device__ Real bar(int j) const {
    return vector.pi && j < num_classes ? known.bar_base * vector.pi[j] : known.bar_base;
  }

  __device__ void write_log_p(const PosteriorRow<Real>& row) {
    const Real log_leave = row.log_reach(false), log_scale = row.log_scale(log_leave);
    write(
        [&](int i, Real bar) {
          return bar > Real(M::tiny) ? log_leave + rough_log(row.scale * row.exp(e[i]) + bar)
                                     : (e[i] - top) + log_scale;
        },
        [&](const ClassApart<Real>& of) { return row.log_p(of, row.log_reach(of.is_xt)); });
  }

  __device__ void write_gradient(const PosteriorRow<Real>& row) {
    const auto weighted = [&](int i, Real bar) {
      const Real of = row.exp(e[i]);
      return bar > Real(M::tiny) ? row.weight(of, bar) * g[i] : g[i];
    };
    Real sums[] = {0, 0};
    rows.each_part([&](int start) {
      read(start);
      read_upstream(start);
      rows.each_number(start, [&](int i, int j) {
        sums[0] += g[i];
        sums[1] += weighted(i, bar(j));
      });
    });
    rows.reduce(sums, Sum());
    for (const ClassApart<Real>& of : apart) {
      sums[0] += of.upstream;
      sums[1] += row.weight(of) * of.upstream;
    }
    const PosteriorPull<Real> pull(row, apart[0].e, sums[0], sums[1]);
    write([&](int i, Real bar) { return weighted(i, bar) - row.exp(e[i]) * pull.level; },
          [&](const ClassApart<Real>& of) { return pull.gradient(of, row.weight(of)); });
  }
};

template <class Element>
__global__ void __launch_bounds__(kMostThreads, 1)
    posterior_of_long_rows(const PPosterior call,
                           const Vector<typename Memory<Element>::Real> vector, const Runs runs,
                           const typename PosteriorOfLongRow<Element>::BlockRows rows) {
  PosteriorOfLongRow<Element>(call, rows, vector, runs).run();
}

}  // namespace d3pm::device
