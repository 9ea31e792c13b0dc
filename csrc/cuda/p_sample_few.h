// p_sample of rows of few classes: a thread a row. It sums them by fours, of which one is drawn in
// double, and then one of its classes.
#pragma once

#include "p_sample_tokens.h"
#include "rows_few.h"

namespace d3pm::device {

// Of a row that is not read the mathematics is to no purpose, for the warp stays together.
template <class Element, int kClasses>
struct PSampleOfFewClasses {
  using Row = typename RowsOfWarp<Element, kClasses>::Row;
  using Real = typename Memory<Element>::Real;
  static constexpr int kFours = Row::kMost / 4;

  static __device__ void run(const Row& row, int forbidden, RowOfDraw<Real>& token) {
    row.put(forbidden, -INFINITY);
    const Real logit_xt = token.reads ? row[token.x_t] : Real(0);
    if (token.reads) row.set(token.x_t, -INFINITY);
    Real e[Row::kMost];
    const Exponential<Real> exp(Max()(logit_xt, row.take(e)));
    const Real mass_xt = exp(logit_xt) * token.tilt;

    // The running sums of fours, in double: 1e-9 keeps its share beside 1.
    double running[kFours], total = 0;
    for (double& sum : running) sum = INFINITY;
    row.each_four([&](int i) {
      Real part = i / 4 == token.x_t / 4 ? mass_xt : Real(0);
#pragma unroll
      for (int k = 0; k < 4; ++k)
        if (i + k < row.classes) part += exp(e[i + k]);
      running[i / 4] = total += part;
    });
    token.mass_xt = mass_xt;
    token.total = total;
    if (!(total > 0)) return;
    const double target = token.draw * total, last = below(total);
    double into;
    const int first = 4 * passed(running, target < last ? target : last, into);
    Real masses[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) masses[k] = exp(row.at(first + k, -INFINITY));
    token.of_model = first + one_of(masses, token.x_t - first, mass_xt, into);
  }
};

template <class Element, int kClasses>
__global__ void __launch_bounds__(FewClasses<Element>::kRows)
    p_sample_of_few_classes(const PSample call, const DrawVector vector,
                            const FewClasses<Element> layout) {
  using Real = typename Memory<Element>::Real;
  D3PM_DYNAMIC_SHARED(Element, shared);
  const RowsOfWarp<Element, kClasses> rows(layout, call.chain.num_tokens, shared);
  const DrawnToken<Real> token(call, vector, rows.number());
  RowOfDraw<Real> drawn = token.row();
  const auto row = rows.row(token.reads);
  if (!row.all(!token.reads)) {
    rows.begin_read(call.logits);
    rows.finish_read();
    PSampleOfFewClasses<Element, kClasses>::run(row, static_cast<int>(call.chain.forbidden), drawn);
  }
  token.write(drawn);
}

}  // namespace d3pm::device
