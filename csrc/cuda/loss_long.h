// Rows that no block can hold: read three times, from the second time on out of the cache.
#pragma once

#include "loss_curve.h"

namespace d3pm::device {

template <class Element, bool kHasPi>
struct LossOfLongRow {
  static constexpr int kNumbers = kMostNumbers<Element> / 4;
  using BlockRows = Rows<Element, kNumbers>;
  using Real = typename BlockRows::Real;
  using M = Math<Real>;

  const Loss& call;
  const BlockRows& rows;
  const LossVector<Real>& vector;
  TokenRow<Real> token;
  const Element* const row;
  Element* const grad;
  const int num_logits, mask, forbidden;
  Real top = 0;
  Real e[kNumbers];

  __device__ LossOfLongRow(const Loss& call, const BlockRows& rows, const LossVector<Real>& vector)
      : call(call),
        rows(rows),
        vector(vector),
        token(KnownToken<Real>(call, vector.template known<kHasPi>(), rows.row()), rows.row(),
              rows.row() < call.chain.num_tokens),
        row(static_cast<const Element*>(call.logits) + token.token * call.num_logits),
        grad(static_cast<Element*>(call.grad) + token.token * call.num_logits),
        num_logits(static_cast<int>(call.num_logits)),
        mask(static_cast<int>(call.chain.mask_id)),
        forbidden(static_cast<int>(call.chain.forbidden)) {}

  __device__ void run() {
    if (!rows.all(token.settled)) read_row();
    if (rows.is_first_thread()) token.write_loss(call);
    if (call.grad && token.inside) token.settled ? write_value() : write_gradient();
  }

 private:
  // Finds out all that the row says of the token.
  __device__ void read_row() {
    const Real logit_x0 = logit(token.x0), logit_xt = logit(token.x_t);
    const Real logit_mask = token.has_mask_apart ? logit(mask) : Real(-INFINITY);
    Real largest = Max()(Max()(logit_x0, logit_xt), logit_mask);
    rows.each_part([&](int start) {
      read(start);
#pragma unroll
      for (int i = 0; i < kNumbers; ++i) largest = Max()(largest, e[i]);
    });
    largest = rows.reduce(largest, Max());
    if (!token.settled) top = largest;

    Real e_rest = 0;
    rows.each_part([&](int start) {
      exponentiate(start);
#pragma unroll
      for (int i = 0; i < kNumbers; ++i) e_rest += e[i];
    });
    token.e_rest = rows.reduce(e_rest, Sum());
    if (!token.settled) {
      token.read(Exponential<Real>(top), logit_x0, logit_xt, logit_mask);
      token.solve();
    }
    sum_over_rest();
    if (!token.settled) token.finish(mask >= 0);
  }

  __device__ Real logit(int j) const {
    return token.settled ? Real(0) : BlockRows::logit(row, j, num_logits, forbidden);
  }

  __device__ uint64_t apart(int start) const {
    return rows.place(token.x0 - start) | rows.place(token.x_t - start) | rows.place(mask - start);
  }

  __device__ void read(int start) {
    rows.read(row, start, token.settled ? 0 : num_logits, e);
    BlockRows::hide(apart(start) | rows.place(forbidden - start), e);
  }

  // Fills in exp(logit - top).
  __device__ void exponentiate(int start) {
    read(start);
    const Exponential<Real> exp(top);
#pragma unroll
    for (int i = 0; i < kNumbers; ++i) e[i] = exp(e[i]);
  }

  __device__ LossCurve<Element, kHasPi> curve() const { return {call, token}; }

  // Calls body(i, pi) for the classes of a part.
  template <class Body>
  __device__ void each_class(int start, const Body& body) const {
    rows.each_number(start, [&](int i, int j) {
      if (j < num_logits) body(i, kHasPi ? vector.pi[j] : Real(1));
    });
  }

  __device__ void sum_over_rest() {
    Real sums[] = {0, 0};
    if (!token.settled && token.is_curved()) {
      const auto curve = this->curve();
      rows.each_part([&](int start) {
        exponentiate(start);
        const uint64_t apart = this->apart(start);
        each_class(start, [&](int i, Real pi) {
          if (!(apart >> i & 1)) sums[0] += curve.phi(e[i], pi);
          sums[1] += curve.pull(e[i], curve.m(e[i], pi), pi);
        });
      });
    }
    rows.reduce(sums, Sum());
    token.sum_phi = kHasPi ? sums[0] : sums[0] / static_cast<Real>(call.chain.num_classes);
    token.sum_h = sums[1];
  }

  __device__ void write_value() {
#pragma unroll
    for (int i = 0; i < kNumbers; ++i) e[i] = token.value;
    rows.each_part([&](int start) { rows.write(grad, start, num_logits, e); });
  }

  __device__ void write_gradient() {
    const Real factor = call.factor<Real>();
    const auto curve = this->curve();
    const LossSlope<Element, kHasPi> slope(token, curve, factor);
    rows.each_part([&](int start) {
      exponentiate(start);
      each_class(start, [&](int i, Real pi) { e[i] = slope(e[i], curve.m(e[i], pi), pi); });
      rows.write(grad, start, num_logits, e);
      // One may be another, the first of these.
      put(mask, start, token.grad_mask * factor);
      put(token.x_t, start, token.grad_xt * factor);
      put(token.x0, start, token.grad_x0 * factor);
    });
  }

  // By the thread that has written the class as one of the rest.
  __device__ void put(int j, int start, Real value) const {
    if (rows.place(j - start) && j < num_logits) grad[j] = Memory<Element>::narrow(value);
  }
};

template <class Element, bool kHasPi>
__global__ void __launch_bounds__(kMostThreads, 1)
    loss_of_long_rows(const Loss call, const LossVector<typename Memory<Element>::Real> vector,
                      const typename LossOfLongRow<Element, kHasPi>::BlockRows rows) {
  LossOfLongRow<Element, kHasPi>(call, rows, vector).run();
}

}  // namespace d3pm::device
