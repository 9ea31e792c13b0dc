// Rows of few classes: a thread a row. Those of a warp lie in shared memory as they do in global
// memory, and go in and out 16 bytes at a time.
#pragma once

#include "loss_curve.h"

namespace d3pm::device {

// How the rows of a block are laid down: of so many classes that 48 KiB hold them, which is what a
// block has without asking.
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
  size_t shared_bytes() const { return size_t(kRows) * pitch() * sizeof(Element); }
  D3PM_HOST_DEVICE int pitch() const { return classes + pad; }

  // Where a number of the rows of a warp lies.
  __device__ int place(int i) const { return i + (i * inverse >> 20) * pad; }
};

// For kClasses classes, or where it is 0, for any number of them.
template <class Element, bool kHasPi, int kClasses>
struct LossOfFewClasses {
  using Layout = FewClasses<Element>;
  using Real = typename Memory<Element>::Real;
  using M = Math<Real>;
  using Curve = LossCurve<Element, kHasPi>;
  static constexpr int kMost = kClasses ? (kClasses + 3) / 4 * 4 : Layout::kMost;

  const Loss& call;
  const Vector<Real>& vector;
  const Layout& layout;
  const int64_t first;  // token of the warp
  TokenRow<Real> token;
  const int classes, mask;
  Element *const rows, *const row;
  Real top;
  Real e[kMost], m[kMost];

  __device__ LossOfFewClasses(const Loss& call, const Vector<Real>& vector, const Layout& layout,
                              Element* shared)
      : call(call),
        vector(vector),
        layout(layout),
        first(int64_t{blockIdx.x} * Layout::kRows + threadIdx.x / kWarp * kWarp),
        token(call, KnownToken<Real>(call, vector, first + threadIdx.x % kWarp),
              first + threadIdx.x % kWarp),
        classes(kClasses ? kClasses : layout.classes),
        mask(static_cast<int>(call.chain.mask_id)),
        rows(shared + threadIdx.x / kWarp * kWarp * layout.pitch()),
        row(rows + threadIdx.x % kWarp * layout.pitch()) {}

  __device__ void run() {
    const bool are_zero = all(token.settled && token.value == 0);
    if (!are_zero) {
      const Element* const logits = static_cast<const Element*>(call.logits) + first * classes;
      each_vector([&](int i, Element* to) { copy_async(to, logits + i); },
                  [&](int i, Element* to) { *to = logits[i]; });
      wait_for_copies();
      __syncwarp();
      compute();
      if (token.settled) fill();
      __syncwarp();
    }
    if (token.inside) token.write_loss(call);
    if (!call.grad) return;
    Element* const grad = static_cast<Element*>(call.grad) + first * classes;
    const Element zero = Memory<Element>::narrow(0);
    each_vector(
        [&](int i, const Element* from) {
          Pack<Element> pack;
          for (Element& value : pack.values) value = zero;
          if (!are_zero) pack = *reinterpret_cast<const Pack<Element>*>(from);
          *reinterpret_cast<Pack<Element>*>(grad + i) = pack;
        },
        [&](int i, const Element* from) { grad[i] = are_zero ? zero : *from; });
  }

 private:
  // Calls vector(i, place) for the vectors of aligned rows of the warp, which begin with number i,
  // and one(i, place) for the numbers that are left.
  template <class OfVector, class OfOne>
  __device__ void each_vector(const OfVector& vector, const OfOne& one) const {
    constexpr int kWidth = Layout::kWidth;
    const int lane = threadIdx.x % kWarp;
    const int64_t left = call.chain.num_tokens - first;
    const int count = static_cast<int>(left < kWarp ? left : kWarp) * classes;
    const int end = layout.aligned ? count / kWidth * kWidth : 0;
#pragma unroll
    for (int trip = 0; trip < (kMost + kWidth - 1) / kWidth; ++trip) {
      const int i = (trip * kWarp + lane) * kWidth;
      if (i < end) vector(i, rows + layout.place(i));
    }
#pragma unroll 1
    for (int i = end + lane; i < count; i += kWarp) one(i, rows + layout.place(i));
  }

  // Calls body(i) for classes i to i + 3, for all four at a time.
  template <class Body>
  __device__ void each_four(const Body& body) const {
#pragma unroll
    for (int i = 0; i < kMost; i += 4) {
      if (i >= classes) break;
      body(i);
    }
  }

  __device__ Real pi(int j) const { return kHasPi && j < classes ? vector.pi[j] : Real(0); }

  __device__ bool has(int j) const { return j >= 0 && j < classes; }

  __device__ void put(int j, Real value) {
    if (has(j)) row[j] = Memory<Element>::narrow(value);
  }

  // Whether something holds for all rows of the warp.
  static __device__ bool all(bool holds) { return __all_sync(0xffffffff, holds); }

  __device__ void fill() {
#pragma unroll 1
    for (int j = 0; j < classes; ++j) put(j, token.value);
  }

  // Of a settled row to no purpose: the warp stays together.
  __device__ void compute() {
    read();
    token.solve();
    const Curve curve(call, token);
    token.sum_h = token.sum_phi = 0;
    const bool is_curved = kHasPi || !all(!token.is_curved());
    if (is_curved) {
      Real sums[4] = {}, log = 0;
      each_four([&](int i) {
        const Real pi[] = {this->pi(i), this->pi(i + 1), this->pi(i + 2), this->pi(i + 3)};
        curve.bend_four(e + i, pi, m + i, sums, log);
      });
      token.sum_h = (sums[0] + sums[1]) + (sums[2] + sums[3]);
      sum_phi(curve, log);
    }
    token.finish(mask >= 0);

    const Real factor = call.factor<Real>();
    const LossSlope<Element, kHasPi> slope(token, curve, factor);
    each_four([&](int i) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const int j = i + k;
        if (j >= classes) continue;
        const Real value = is_curved ? slope(e[j], m[j], pi(j)) : e[j] * slope.flat;
        row[j] = Memory<Element>::narrow(value);
      }
    });
    if (token.has_mask_apart) put(mask, token.grad_mask * factor);
    if (token.same == 0) put(token.x_t, token.grad_xt * factor);
    put(token.x0, token.grad_x0 * factor);
  }

  // The sum of phi(g), by products or class by class.
  __device__ void sum_phi(const Curve& curve, Real sum_log) {
    const int x0 = token.x0, x_t = token.x_t;
    const auto pi_of = [&](int j) { return kHasPi ? vector.pi[j] : static_cast<Real>(has(j)); };
    Real rest = (kHasPi ? Real(1) : static_cast<Real>(classes)) - pi_of(x0);
    if (token.same == 0) rest -= pi_of(x_t);
    if (token.has_mask_apart) rest -= pi_of(mask);
    const Real of_shift = M::phi(curve.line.shift, curve.line.ratio);
    const bool keeps = curve.sum_phi(of_shift, rest, token.e_rest, sum_log, token.sum_phi);
    if (!all(keeps || !token.is_curved())) {
      const Exponential<Real> exp(top);
      Real exact = 0;
#pragma unroll 1
      for (int j = 0; j < classes; ++j) {
        const Real phi = curve.phi(exp(Memory<Element>::widen(row[j])), pi_of(j));
        if (j != x0 && j != x_t && j != mask) exact += phi;
      }
      if (!keeps) token.sum_phi = exact;
    }
    if (!kHasPi) token.sum_phi /= static_cast<Real>(call.chain.num_classes);
  }

  // Fills in e of the rest, which is 0 for other classes.
  __device__ void read() {
    const int forbidden = static_cast<int>(call.chain.forbidden);
    const auto logit = [&](int j) {
      return has(j) && j != forbidden ? Memory<Element>::widen(row[j]) : Real(-INFINITY);
    };
    const Real logit_x0 = logit(token.x0), logit_xt = logit(token.x_t);
    const Real logit_mask = token.has_mask_apart ? logit(mask) : Real(-INFINITY);
    for (const int j : {token.x0, token.x_t, mask, forbidden}) put(j, -INFINITY);
    Real tops[] = {logit_x0, logit_xt, logit_mask, Real(-INFINITY)};
    each_four([&](int i) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        e[i + k] = i + k < classes ? Memory<Element>::widen(row[i + k]) : Real(-INFINITY);
        tops[k] = Max()(tops[k], e[i + k]);
      }
    });
    top = Max()(Max()(tops[0], tops[1]), Max()(tops[2], tops[3]));
    const Exponential<Real> exp(top);
    Real sums[4] = {};
    each_four([&](int i) {
#pragma unroll
      for (int k = 0; k < 4; ++k) sums[k] += e[i + k] = exp(e[i + k]);
    });
    token.e_rest = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    token.read(exp, logit_x0, logit_xt, logit_mask);
  }
};

template <class Element, bool kHasPi, int kClasses>
__global__ void __launch_bounds__(FewClasses<Element>::kRows)
    loss_of_few_classes(const Loss call, const Vector<typename Memory<Element>::Real> vector,
                        const FewClasses<Element> layout) {
  D3PM_DYNAMIC_SHARED(Element, shared);
  LossOfFewClasses<Element, kHasPi, kClasses>(call, vector, layout, shared).run();
}

}  // namespace d3pm::device
