// The loss of rows of few classes: a thread a row.
#pragma once

#include "loss_curve.h"
#include "rows_few.h"

namespace d3pm::device {

// The mathematics of a row; of a settled one to no purpose, for the warp stays together.
template <class Element, bool kHasPi, int kClasses>
struct LossOfFewClasses {
  using Row = typename RowsOfWarp<Element, kClasses>::Row;
  using Real = typename Memory<Element>::Real;
  using M = Math<Real>;
  using Curve = LossCurve<Element, kHasPi>;

  const Loss& call;
  const Vector<Real>& vector;
  TokenRow<Real>& token;
  const Row& row;  // in the end the gradient
  const int classes, mask;
  Real top;
  Real e[Row::kMost], m[Row::kMost];

  __device__ LossOfFewClasses(const Loss& call, const Vector<Real>& vector, TokenRow<Real>& token,
                              const Row& row)
      : call(call),
        vector(vector),
        token(token),
        row(row),
        classes(row.classes),
        mask(static_cast<int>(call.chain.mask_id)) {}

  __device__ void run() {
    read();
    token.solve();
    const Curve curve(call, token);
    token.sum_h = token.sum_phi = 0;
    const bool is_curved = kHasPi || !row.all(!token.is_curved());
    if (is_curved) sum_over_rest(curve);
    token.finish(mask >= 0 && !row.all(!token.has_mask_apart));
    if (kClasses || call.grad) put_gradient(curve, is_curved);
  }

 private:
  __device__ Real pi(int j) const { return kHasPi && j < classes ? vector.pi[j] : Real(0); }

  // Fills in e of the rest, which is 0 for other classes.
  __device__ void read() {
    row.put(static_cast<int>(call.chain.forbidden), -INFINITY);
    const Real logit_x0 = row[token.x0], logit_xt = row.at(token.x_t, -INFINITY);
    const Real logit_mask = token.has_mask_apart ? row.at(mask, -INFINITY) : Real(-INFINITY);
    row.set(token.x0, -INFINITY);
    row.put(token.x_t, -INFINITY);
    row.put(mask, -INFINITY);
    top = Max()(Max()(logit_x0, logit_xt), Max()(logit_mask, row.take(e)));
    if (token.settled) top = 0;
    const Exponential<Real> exp(top);
    Real sums[4] = {};
    row.each_four([&](int i) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        e[i + k] = i + k < classes ? exp(e[i + k]) : Real(0);
        if (i + k < classes) sums[k] += e[i + k];
      }
    });
    token.e_rest = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    token.read(exp, logit_x0, logit_xt, logit_mask);
  }

  // Fills in m, and sums phi and h.
  __device__ void sum_over_rest(const Curve& curve) {
    Real sums[4] = {}, sum_log = 0;
    row.each_four([&](int i) {
      const Real pi[] = {this->pi(i), this->pi(i + 1), this->pi(i + 2), this->pi(i + 3)};
      curve.bend_four(e + i, pi, m + i, sums, sum_log);
    });
    token.sum_h = (sums[0] + sums[1]) + (sums[2] + sums[3]);

    const auto pi_of = [&](int j) { return kHasPi ? vector.pi[j] : static_cast<Real>(row.has(j)); };
    Real rest = kHasPi ? 1 - vector.pi[token.x0] : static_cast<Real>(classes - 1);
    if (token.same == 0) rest -= pi_of(token.x_t);
    if (token.has_mask_apart) rest -= pi_of(mask);
    const Real of_shift = M::phi(curve.line.shift, curve.line.ratio);
    const bool keeps = curve.sum_phi(of_shift, rest, token.e_rest, sum_log, token.sum_phi);
    if (!row.all(keeps || !token.is_curved())) {
      const Real exact = curve.exact_sum_phi(
          [&] {
            Real sum = 0;
            int there = 0;
            row.each_four([&](int i) { sum += curve.phi_of_four(e + i, there); });
            return curve.with_zeros(sum, rest - there, of_shift);
          },
          [&](bool is_needed) { return sum_phi_by_one(curve, is_needed); });
      if (!keeps) token.sum_phi = exact;
    }
    if (!kHasPi) token.sum_phi *= static_cast<Real>(vector.uniform);
  }

  // Over no class where it is not needed.
  __device__ Real sum_phi_by_one(const Curve& curve, bool is_needed) const {
    const Exponential<Real> exp(top);
    Real sum = 0;
#pragma unroll 1
    for (int j = is_needed ? 0 : classes; j < classes; ++j) {
      const Real phi =
          curve.phi(exp(Memory<Element>::widen(row.numbers[j])), kHasPi ? vector.pi[j] : Real(1));
      if (j != token.x0 && j != token.x_t && j != mask) sum += phi;
    }
    return sum;
  }

  __device__ void put_gradient(const Curve& curve, bool is_curved) {
    const Real factor = call.factor<Real>();
    const LossSlope<Element, kHasPi> slope(token, curve, factor);
    if (is_curved)
      row.put_all([&](int i) { return slope(e[i], m[i], pi(i)); });
    else
      row.put_all([&](int i) { return e[i] * slope.flat; });
    if (token.settled) return;
    if (token.has_mask_apart) row.put(mask, token.grad_mask * factor);
    if (token.same == 0) row.put(token.x_t, token.grad_xt * factor);
    row.set(token.x0, token.grad_x0 * factor);
  }
};

// Those for some number of classes serve plain calls.
template <class Element, bool kHasPi, int kClasses>
__global__ void __launch_bounds__(FewClasses<Element>::kRows)
    loss_of_few_classes(const Loss any_call,
                        const LossVector<typename Memory<Element>::Real> any_vector,
                        const FewClasses<Element> layout) {
  using Real = typename Memory<Element>::Real;
  D3PM_DYNAMIC_SHARED(Element, shared);
  const Loss call = known<(kClasses > 0)>(any_call);
  const auto vector = any_vector.template known<kHasPi>();
  const RowsOfWarp<Element, kClasses> rows(layout, call.chain.num_tokens, shared);
  LossStep<Real> step;
  KnownToken<Real> token(call, vector, rows.number(), rows.inside(), step);
  if (__all_sync(0xffffffff, token.settled && token.value == 0)) {
    if (kClasses || call.grad) rows.write_zeros(call.grad);
    TokenRow<Real>(token, rows.number(), rows.inside()).write_loss(call);
    return;
  }
  rows.begin_read(call.logits);
  rows.finish_read();
  token.look_up(call, vector, step);
  TokenRow<Real> of_row(token, rows.number(), rows.inside());
  const auto row = rows.row(!token.settled);
  LossOfFewClasses<Element, kHasPi, kClasses>(call, vector, of_row, row).run();
  of_row.write_loss(call);
  if (kClasses || call.grad) rows.write(call.grad);
}

}  // namespace d3pm::device
