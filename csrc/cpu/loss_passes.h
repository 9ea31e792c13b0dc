// The passes of the loss over a number of vectors that lie one behind the other. What a
// lane means is the caller's affair: a class of one token, or one class of many tokens.
//
// A class that LossRow treats on its own has e = -0: it adds nothing to any sum, and its
// gradient is left to the caller.

#include "../loss_row.h"
#include "row.h"

// A line where all pi are the same: with u = lift e it is 1 + g = ratio (1 + u) and
// h = (h_0 + u) / (1 + u), so that over n classes
//   sum phi(g) = n phi(shift) + shift sum u + sum phi(u)
//              = n phi(shift) + ratio sum u - sum log(1 + u).
// Of these parts only shift can be negative, and where it is, |g| of x_0 is larger. So what cancels
// of it is small next to the term of x_0.
template <class Real>
struct LossBend {
  using V = typename VectorOf<Real>::Type;
  using Bits = typename VectorOf<Real>::Bits;
  V lift, h_0;
  Bits takes_logs;  // whether the second form is used
};

// How log(1 + u) is summed: of each class, as a part of phi; of products of four, as a part of
// theirs; or, where all lanes take logs, of the product of all.
enum class Logs { kOfEach, kOfFour, kOfAll };

template <class Real>
class LossPasses {
  using V = typename VectorOf<Real>::Type;
  using Bits = typename VectorOf<Real>::Bits;
  using M = Math<Real>;
  using Line = LossLine<M>;
  using Bend = LossBend<Real>;
  using Point = LossPoint<M>;
  static constexpr int kWidth = kLanes<Real>;

 public:
  struct Curvature {
    V phi, h;
  };

  // The sum of phi(u), or where the bend takes logs of -log(1 + u), and, with kSlant, that of e h.
  template <bool kSlant, class Next = NothingAhead>
  D3PM_INLINE Curvature curvature(const Real* e, int64_t count, const Bend& bend, Logs logs,
                                  const Next& next = {}) {
    if (logs == Logs::kOfAll) return sum<kSlant, Logs::kOfAll>(e, count, bend, next);
    if (logs == Logs::kOfFour) return sum<kSlant, Logs::kOfFour>(e, count, bend, next);
    return sum<kSlant, Logs::kOfEach>(e, count, bend, next);
  }

  // Sums of pi phi(g) and e h, for vectors pi(v).
  template <class Pi, class Next = NothingAhead>
  D3PM_INLINE Curvature weighted_curvature(const Real* e, int64_t count, const Line& line,
                                           const Pi& pi, const Next& next = {}) {
    Curvature sum = {};
    for (int64_t v = 0; v < count; ++v) {
      next(v);
      const V x = load<V>(e + v * kWidth), p = pi(v);
      const Point at(line, x, p);
      const auto apart = is_apart(x);
      const V phi = p > Real(0) ? p * M::phi(at.g, at.y) : line.slope * x;
      sum.phi += apart ? V{} : phi;
      sum.h += apart ? V{} : x * (at.g / at.y);
    }
    return sum;
  }

  // Turns e into the gradient e (steep h + flat).
  D3PM_INLINE void gradient(Real* e, int64_t count, const Bend& bend, const V& steep,
                            const V& flat) {
    const V slope = (steep + flat) * bend.lift, start = steep * bend.h_0 + flat;
    // By turns, for the divider and the multipliers work at the same time.
    int64_t v = 0;
    for (; v + 2 <= count; v += 2) {
      const V x1 = load<V>(e + v * kWidth), x2 = load<V>(e + (v + 1) * kWidth);
      const V y1 = Real(1) + bend.lift * x1, y2 = Real(1) + bend.lift * x2;
      store(e + v * kWidth, x1 * (slope * x1 + start) / y1);
      store(e + (v + 1) * kWidth, x2 * (slope * x2 + start) * M::reciprocal_of_normal(y2));
    }
    if (v < count) {
      const V x = load<V>(e + v * kWidth);
      store(e + v * kWidth, x * (slope * x + start) / (Real(1) + bend.lift * x));
    }
  }

  template <class Pi>
  D3PM_INLINE void weighted_gradient(Real* e, int64_t count, const Line& line, const V& steep,
                                     const V& flat, const Pi& pi) {
    for (int64_t v = 0; v < count; ++v) {
      const V x = load<V>(e + v * kWidth);
      const Point at(line, x, pi(v));
      store(e + v * kWidth, x * (steep * (at.g / at.y) + flat));
    }
  }

  // Turns e into factor * e.
  D3PM_INLINE void scale(Real* e, int64_t count, const V& factor) {
    for (int64_t v = 0; v < count; ++v) store(e + v * kWidth, factor * load<V>(e + v * kWidth));
  }

 private:
  D3PM_INLINE Bits is_apart(const V& e) { return bit_cast<Bits>(e) < 0; }

  template <bool kSlant, Logs kLogs, class Next>
  D3PM_INLINE Curvature sum(const Real* e, int64_t count, const Bend& bend, const Next& next) {
    constexpr int kFactors = kLogs == Logs::kOfEach ? 1 : 4;
    typename M::ProductLog log;
    Curvature sum = {};
    const auto add = [&](int64_t v, int64_t end) D3PM_MEMBER {
      V u[kFactors], y[kFactors], pull[kFactors], product, pulls;
      for (int i = 0; i < kFactors; ++i) {
        const bool inside = v + i < end;
        const V x = inside ? load<V>(e + (v + i) * kWidth) : V{};
        if (inside) next(v + i);
        u[i] = bend.lift * x;
        y[i] = Real(1) + u[i];
        pull[i] = x * (bend.h_0 + u[i]);
      }
      if constexpr (kLogs == Logs::kOfEach) {
        product = y[0], pulls = pull[0];
        sum.phi += M::phi_of_product(u[0], V{}, bend.takes_logs);
      } else {
        V y_01, y_23;
        if constexpr (kLogs == Logs::kOfAll) {
          y_01 = y[0] * y[1], y_23 = y[2] * y[3], product = y_01 * y_23;
          log.multiply(product);
        } else {
          const V sum_01 = u[0] + u[1], sum_23 = u[2] + u[3], of_all = sum_01 + sum_23;
          const V cross_01 = u[0] * u[1], cross_23 = u[2] * u[3];
          const V u_01 = sum_01 + cross_01, u_23 = sum_23 + cross_23;
          const V beyond = (cross_01 + cross_23) + u_01 * u_23;
          y_01 = Real(1) + u_01, y_23 = Real(1) + u_23, product = Real(1) + (of_all + beyond);
          sum.phi += M::phi_of_product(of_all, beyond, bend.takes_logs);
        }
        const V of_01 = pull[0] * y[1] + pull[1] * y[0], of_23 = pull[2] * y[3] + pull[3] * y[2];
        pulls = of_01 * y_23 + of_23 * y_01;
      }
      if (kSlant) sum.h += pulls / product;
    };
    int64_t v = 0;
    for (; v + kFactors <= count; v += kFactors) add(v, v + kFactors);
    if (v < count) add(v, count);
    if (kLogs == Logs::kOfAll) sum.phi = -log.value();
    return sum;
  }
};
