// Rows of few classes: a thread a row. Those of a warp lie in shared memory as they do in global
// memory, and go in and out 16 bytes at a time.
#pragma once

#include "loss_curve.h"

namespace d3pm::device {

// How the rows of a block are laid down: of so many classes that 48 KiB hold them, which is what a
// block has without asking. Behind them are zeros.
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
    return (size_t(kRows) * (classes + pad) + kMost) * sizeof(Element);
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
  const int64_t first;     // of the block
  const int before, left;  // rows of the block before those of the warp, and from these on
  const int lane, classes;
  Element *const rows, *const zeros;

  __device__ RowsOfWarp(const Layout& layout, int64_t num_rows, Element* shared)
      : layout(layout),
        first(int64_t{blockIdx.x} * Layout::kRows),
        before(threadIdx.x / kWarp * kWarp),
        left(static_cast<int>(num_rows - first < Layout::kRows ? num_rows - first : Layout::kRows) -
             before),
        lane(threadIdx.x % kWarp),
        classes(kClasses ? kClasses : layout.classes),
        rows(shared + before * pitch()),
        zeros(shared + Layout::kRows * pitch()) {}

  __device__ int64_t number() const { return first + threadIdx.x; }
  __device__ bool inside() const { return lane < left; }

  __device__ Element* row() const { return rows + lane * pitch(); }

  // 1 where the row begins in the middle of a pair, else 0.
  __device__ int is_odd() const { return classes % 2 ? lane % 2 : 0; }

  // Where no row is to be read, the zeros.
  __device__ const Element* read(const void* from, bool reads) const {
    each_vector(
        static_cast<const Element*>(from),
        [](bool is_there, const Element* logits, Element* row) {
          copy_async_if(is_there, row, logits);
        },
        [](const Element& logit, Element& to) { to = logit; });
    *reinterpret_cast<Pair<Element>*>(zeros + 2 * lane) = {};
    wait_for_copies();
    __syncwarp();
    return reads ? row() : zeros + is_odd();
  }

  __device__ void write(void* to) const {
    __syncwarp();
    each_vector(
        static_cast<Element*>(to),
        [](bool is_there, Element* grad, Element* row) {
          if (is_there) vector(grad) = vector(row);
        },
        [](Element& grad, Element& from) { grad = from; });
  }

  __device__ void write_zeros(void* to) const {
    each_vector(
        static_cast<Element*>(to),
        [](bool is_there, Element* grad, Element*) {
          if (is_there) vector(grad) = {};
        },
        [](Element& grad, Element&) { grad = Memory<Element>::narrow(0); });
  }

 private:
  __device__ int pitch() const { return kHasNoPad ? kClasses : layout.classes + layout.pad; }

  static __device__ Pack<Element>& vector(Element* at) {
    return *reinterpret_cast<Pack<Element>*>(at);
  }

  // Calls vector(is_there, there, here) for the vectors of the rows in `memory` and in shared
  // memory, or where not all are whole, one(there, here) for the numbers.
  template <class Number, class OfVector, class OfOne>
  __device__ void each_vector(Number* memory, const OfVector& vector, const OfOne& one) const {
    memory += first * classes + before * classes;
    if (layout.aligned && left >= kWarp) {
      const int own = lane * kWidth;
      memory += own;
#pragma unroll
      for (int begin = 0; begin < kMost * kWarp; begin += kWarp * kWidth)
        vector(own < kWarp * classes - begin, memory + begin, rows + place(own, begin));
    } else {
      const int count = (left < kWarp ? left : kWarp) * classes;
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
  const int classes, mask, is_odd;
  Element* const row;           // to mark classes of, and for the gradient
  const Element* const logits;  // the row, or zeros where it is settled
  Real top;
  Real e[kMost], m[kMost];

  __device__ LossOfFewClasses(const Loss& call, const Vector<Real>& vector, TokenRow<Real>& token,
                              const Rows& rows, const Element* logits)
      : call(call),
        vector(vector),
        token(token),
        classes(rows.classes),
        mask(static_cast<int>(call.chain.mask_id)),
        is_odd(rows.is_odd()),
        row(rows.row()),
        logits(logits) {}

  __device__ void run() {
    read();
    token.solve();
    const Curve curve(call, token);
    token.sum_h = token.sum_phi = 0;
    const bool is_curved = kHasPi || !all(!token.is_curved());
    if (is_curved) sum_over_rest(curve);
    token.finish(mask >= 0 && !all(!token.has_mask_apart));
    if (kClasses || call.grad) put_gradient(curve, is_curved);
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

  // Calls body(i) for classes i and i + 1.
  template <class Body>
  __device__ void each_two(const Body& body) const {
#pragma unroll
    for (int i = 0; i < kMost; i += 2) {
      if (i >= classes) break;
      body(i);
    }
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
    top = Max()(Max()(logit_x0, logit_xt), Max()(logit_mask, take()));
    if (token.settled) top = 0;
    const Exponential<Real> exp(top);
    Real sums[4] = {};
    each_four([&](int i) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        e[i + k] = i + k < classes ? exp(e[i + k]) : Real(0);
        if (i + k < classes) sums[k] += e[i + k];
      }
    });
    token.e_rest = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    token.read(exp, logit_x0, logit_xt, logit_mask);
  }

  // Fills in the logits of the rest for e, and returns the largest.
  __device__ Real take() {
    Real tops[] = {-INFINITY, -INFINITY};
    if constexpr (sizeof(Element) == 2) {
      const auto* const words = reinterpret_cast<const Word*>(logits - is_odd);
      auto both = Pair<Element>::narrow(-INFINITY, -INFINITY);
      each_two([&](int i) {
        const uint32_t word = words[i / 2], next = i + 2 < classes ? words[i / 2 + 1] : word;
        const Pair<Element> pair = {is_odd ? from_middle(word, next) : word};
        e[i] = pair.widened(0);
        e[i + 1] = pair.widened(1);
        if (i + 1 < classes)
          both = max(both, pair);
        else
          tops[0] = e[i];
      });
      tops[0] = Max()(tops[0], both.widened(0));
      tops[1] = both.widened(1);
    } else {
      each_two([&](int i) {
        for (int k = 0; k < 2; ++k) {
          e[i + k] = i + k < classes ? logits[i + k] : Real(-INFINITY);
          tops[k] = Max()(tops[k], e[i + k]);
        }
      });
    }
    return Max()(tops[0], tops[1]);
  }

  // The later half of a word, and the earlier one of the next.
  static __device__ uint32_t from_middle(uint32_t word, uint32_t next) {
    return word >> 16 | next << 16;
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
    if (is_curved)
      put_rest([&](int i) { return slope(e[i], m[i], pi(i)); });
    else
      put_rest([&](int i) { return e[i] * slope.flat; });
    if (token.settled) return;
    if (token.has_mask_apart) put(mask, token.grad_mask * factor);
    if (token.same == 0) put(token.x_t, token.grad_xt * factor);
    row[token.x0] = Memory<Element>::narrow(token.grad_x0 * factor);
  }

  template <class Gradient>
  __device__ void put_rest(const Gradient& gradient) {
    if constexpr (sizeof(Element) == 2) {
      auto* const words = reinterpret_cast<Word*>(row + is_odd);
      const auto pair = [&](int i) {
        return Pair<Element>::narrow(gradient(i), i + 1 < classes ? gradient(i + 1) : Real(0)).bits;
      };
      uint32_t word = pair(0);
      const uint32_t first = word;
      each_two([&](int i) {
        if (i + 1 >= classes) return;
        const uint32_t next = i + 2 < classes ? pair(i + 2) : word;
        words[i / 2] = is_odd ? from_middle(word, next) : word;
        word = next;
      });
      if (classes % 2) {
        const uint32_t left = is_odd ? first : word;
        row[is_odd ? 0 : classes - 1] = {static_cast<uint16_t>(left)};
      }
    } else {
      each_two([&](int i) {
        for (int j = i; j < i + 2; ++j)
          if (j < classes) row[j] = gradient(j);
      });
    }
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
  const Element* const logits = rows.read(call.logits, !token.settled);
  token.look_up(call, vector, step);
  TokenRow<Real> row(token, rows.number(), rows.inside());
  LossOfFewClasses<Element, kHasPi, kClasses>(call, vector, row, rows, logits).run();
  row.write_loss(call);
  if (kClasses || call.grad) rows.write(call.grad);
}

}  // namespace d3pm::device
