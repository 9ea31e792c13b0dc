// Rows of few classes: a thread a row. Those of a warp lie in shared memory as they do in global
// memory, and go in and out 16 bytes at a time.
#pragma once

#include "loss_curve.h"

namespace d3pm::device {

// How the rows of a block are laid down: of so many classes that 48 KiB hold them, which is what a
// block has without asking. Behind them is a row of zeros.
template <class Element>
struct FewClasses {
  static constexpr int kMost = 64;
  static constexpr int kRows = 128;
  static constexpr int kWidth = Pack<Element>::kSize;

  int classes, pad, inverse;
  bool aligned;

  FewClasses(int64_t num_classes, std::initializer_list<const void*> starts)
      : classes(static_cast<int>(num_classes)),
        // Rows of whole vectors would all begin in few of the banks.
        pad(num_classes % kWidth == 0 && num_classes > kWidth ? kWidth : 0),
        inverse(pad ? (1 << 20) / classes + 1 : 0) {
    uintptr_t bits = 0;
    for (const void* start : starts) bits |= reinterpret_cast<uintptr_t>(start);
    aligned = bits % 16 == 0;
  }

  int64_t blocks(int64_t num_rows) const { return (num_rows + kRows - 1) / kRows; }
  size_t shared_bytes() const {
    return (size_t(kRows) * (classes + pad) + classes) * sizeof(Element);
  }
};

// The rows of a warp, of kClasses classes, or where it is 0, of any number of them.
template <class Element, int kClasses>
struct RowsOfWarp {
  using Layout = FewClasses<Element>;
  static constexpr int kWidth = Layout::kWidth;
  static constexpr int kMost = kClasses ? (kClasses + 3) / 4 * 4 : Layout::kMost;
  static constexpr bool kHasNoPad = kClasses % kWidth != 0;

  const Layout& layout;
  const int64_t num_rows, first;
  const int lane, classes;
  Element *const rows, *const zeros;

  __device__ RowsOfWarp(const Layout& layout, int64_t num_rows, Element* shared)
      : layout(layout),
        num_rows(num_rows),
        first(int64_t{blockIdx.x} * Layout::kRows + threadIdx.x / kWarp * kWarp),
        lane(threadIdx.x % kWarp),
        classes(kClasses ? kClasses : layout.classes),
        rows(shared + threadIdx.x / kWarp * kWarp * pitch()),
        zeros(shared + Layout::kRows * pitch()) {}

  __device__ int64_t number() const { return first + lane; }

  __device__ Element* row() const { return rows + lane * pitch(); }

  // Where no row is to be read, the zeros.
  __device__ const Element* read(const void* from, bool reads) const {
    each_vector(
        static_cast<const Element*>(from),
        [](const Element* logits, Element* row) { copy_async(row, logits); },
        [](const Element& logit, Element& to) { to = logit; });
    for (int j = lane; j < classes; j += kWarp) zeros[j] = Memory<Element>::narrow(0);
    wait_for_copies();
    __syncwarp();
    return reads ? row() : zeros;
  }

  __device__ void write(void* to) const {
    __syncwarp();
    each_vector(
        static_cast<Element*>(to), [](Element* grad, Element* row) { vector(grad) = vector(row); },
        [](Element& grad, Element& from) { grad = from; });
  }

  __device__ void write_zeros(void* to) const {
    each_vector(
        static_cast<Element*>(to), [](Element* grad, Element*) { vector(grad) = {}; },
        [](Element& grad, Element&) { grad = Memory<Element>::narrow(0); });
  }

 private:
  __device__ int pitch() const { return kHasNoPad ? kClasses : layout.classes + layout.pad; }

  static __device__ Pack<Element>& vector(Element* at) {
    return *reinterpret_cast<Pack<Element>*>(at);
  }

  // Calls vector(there, here) for the vectors of the rows in `memory` and in shared memory, or
  // where not all are whole, one(there, here) for the numbers.
  template <class Number, class OfVector, class OfOne>
  __device__ void each_vector(Number* memory, const OfVector& vector, const OfOne& one) const {
    memory += first * classes;
    const int64_t left = num_rows - first;
    if (layout.aligned && left >= kWarp) {
      const int own = lane * kWidth;
      memory += own;
#pragma unroll
      for (int begin = 0; begin < kMost * kWarp; begin += kWarp * kWidth)
        if (own < kWarp * classes - begin) vector(memory + begin, rows + place(own, begin));
    } else {
      const int count = static_cast<int>(left < kWarp ? left : kWarp) * classes;
#pragma unroll 1
      for (int i = lane; i < count; i += kWarp) one(memory[i], rows[place(i, 0)]);
    }
  }

  // Where a number of the rows lies.
  __device__ int place(int own, int begin) const {
    const int i = own + begin;
    return kHasNoPad ? i : i + (i * layout.inverse >> 20) * layout.pad;
  }
};

// The mathematics of a row; of a settled one to no purpose, for the warp stays together.
template <class Element, bool kHasPi, int kClasses>
struct LossOfFewClasses {
  using Rows = RowsOfWarp<Element, kClasses>;
  using Real = typename Memory<Element>::Real;
  using M = Math<Real>;
  using Curve = LossCurve<Element, kHasPi>;
  static constexpr int kMost = Rows::kMost;

  const Loss& call;
  const Vector<Real>& vector;
  TokenRow<Real>& token;
  const int classes, mask;
  Element* const row;           // to mark classes of, and for the gradient
  const Element* const logits;  // the row, or zeros where it is settled
  Real top;
  Real e[kMost], m[kMost];

  __device__ LossOfFewClasses(const Loss& call, const Vector<Real>& vector, TokenRow<Real>& token,
                              int classes, Element* row, const Element* logits)
      : call(call),
        vector(vector),
        token(token),
        classes(classes),
        mask(static_cast<int>(call.chain.mask_id)),
        row(row),
        logits(logits) {}

  __device__ void run() {
    read();
    token.solve();
    const Curve curve(call, token);
    token.sum_h = token.sum_phi = 0;
    const bool is_curved = kHasPi || !all(!token.is_curved());
    if (is_curved) sum_over_rest(curve);
    token.finish(mask >= 0 && !all(!token.has_mask_apart));
    if (call.grad) put_gradient(curve, is_curved);
  }

 private:
  // Calls body(i) for classes i to i + 3, for all four at a time.
  template <class Body>
  __device__ void each_four(const Body& body) const {
#pragma unroll
    for (int i = 0; i < kMost; i += 4) {
      if (i >= classes) break;
      body(i);
    }
  }

  // Calls body(j) for each class.
  template <class Body>
  __device__ void each_class(const Body& body) const {
    each_four([&](int i) {
#pragma unroll
      for (int j = i; j < i + 4; ++j)
        if (j < classes) body(j);
    });
  }

  __device__ Real pi(int j) const { return kHasPi && j < classes ? vector.pi[j] : Real(0); }

  __device__ bool has(int j) const {
    return static_cast<unsigned>(j) < static_cast<unsigned>(classes);
  }

  __device__ void put(int j, Real value) {
    if (has(j)) row[j] = Memory<Element>::narrow(value);
  }

  // Whether something holds for all rows of the warp.
  static __device__ bool all(bool holds) { return __all_sync(0xffffffff, holds); }

  // Fills in e of the rest, which is 0 for other classes.
  __device__ void read() {
    put(static_cast<int>(call.chain.forbidden), -INFINITY);
    const auto logit = [&](int j) {
      return has(j) ? Memory<Element>::widen(row[j]) : Real(-INFINITY);
    };
    const Real logit_x0 = Memory<Element>::widen(row[token.x0]), logit_xt = logit(token.x_t);
    const Real logit_mask = token.has_mask_apart ? logit(mask) : Real(-INFINITY);
    row[token.x0] = Memory<Element>::narrow(-INFINITY);
    put(token.x_t, -INFINITY);
    put(mask, -INFINITY);
    Real tops[] = {logit_x0, logit_xt, logit_mask, Real(-INFINITY)};
    each_four([&](int i) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        e[i + k] = i + k < classes ? Memory<Element>::widen(logits[i + k]) : Real(-INFINITY);
        tops[k] = Max()(tops[k], e[i + k]);
      }
    });
    top = Max()(Max()(tops[0], tops[1]), Max()(tops[2], tops[3]));
    if (token.settled) top = 0;
    const Exponential<Real> exp(top);
    Real sums[4] = {};
    each_four([&](int i) {
#pragma unroll
      for (int k = 0; k < 4; ++k) sums[k] += e[i + k] = exp(e[i + k]);
    });
    token.e_rest = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    token.read(exp, logit_x0, logit_xt, logit_mask);
  }

  // Fills in m, and sums phi and h.
  __device__ void sum_over_rest(const Curve& curve) {
    Real sums[4] = {}, sum_log = 0;
    each_four([&](int i) {
      const Real pi[] = {this->pi(i), this->pi(i + 1), this->pi(i + 2), this->pi(i + 3)};
      curve.bend_four(e + i, pi, m + i, sums, sum_log);
    });
    token.sum_h = (sums[0] + sums[1]) + (sums[2] + sums[3]);

    const auto pi_of = [&](int j) { return kHasPi ? vector.pi[j] : static_cast<Real>(has(j)); };
    Real rest = kHasPi ? 1 - vector.pi[token.x0] : static_cast<Real>(classes - 1);
    if (token.same == 0) rest -= pi_of(token.x_t);
    if (token.has_mask_apart) rest -= pi_of(mask);
    const Real of_shift = M::phi(curve.line.shift, curve.line.ratio);
    const bool keeps = curve.sum_phi(of_shift, rest, token.e_rest, sum_log, token.sum_phi);
    if (!all(keeps || !token.is_curved())) {
      const Real exact = curve.exact_sum_phi(
          [&] {
            Real sum = 0;
            int there = 0;
            each_four([&](int i) { sum += curve.phi_of_four(e + i, there); });
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
          curve.phi(exp(Memory<Element>::widen(logits[j])), kHasPi ? vector.pi[j] : Real(1));
      if (j != token.x0 && j != token.x_t && j != mask) sum += phi;
    }
    return sum;
  }

  __device__ void put_gradient(const Curve& curve, bool is_curved) {
    const Real factor = call.factor<Real>();
    const LossSlope<Element, kHasPi> slope(token, curve, factor);
    const auto put = [&](int j, Real value) { row[j] = Memory<Element>::narrow(value); };
    if (is_curved)
      each_class([&](int j) { put(j, slope(e[j], m[j], pi(j))); });
    else
      each_class([&](int j) { put(j, e[j] * slope.flat); });
    if (token.settled) return;
    if (token.has_mask_apart) this->put(mask, token.grad_mask * factor);
    if (token.same == 0) this->put(token.x_t, token.grad_xt * factor);
    put(token.x0, token.grad_x0 * factor);
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
  KnownToken<Real> token(call, vector, rows.number(), step);
  if (__all_sync(0xffffffff, token.settled && token.value == 0)) {
    if (call.grad) rows.write_zeros(call.grad);
    TokenRow<Real>(call, token, rows.number()).write_loss(call);
    return;
  }
  const Element* const logits = rows.read(call.logits, !token.settled);
  token.look_up(call, vector, step);
  TokenRow<Real> row(call, token, rows.number());
  LossOfFewClasses<Element, kHasPi, kClasses>(call, vector, row, rows.classes, rows.row(), logits)
      .run();
  row.write_loss(call);
  if (call.grad) rows.write(call.grad);
}

}  // namespace d3pm::device
