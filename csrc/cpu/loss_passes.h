// The passes of the loss over a number of vectors that lie one behind the other. What a
// lane means is the caller's affair: a class of one token, or one class of many tokens.
//
// A class that LossRow treats on its own has e = -0: it adds nothing to any sum, and its
// gradient is left to the caller.

#include "../loss_row.h"
#include "row.h"

template <class Real>
class LossPasses {
  using V = typename VectorOf<Real>::Type;
  using M = Math<Real>;
  using Line = LossLine<M>;
  using Point = LossPoint<M>;
  static constexpr int kWidth = kLanes<Real>;

 public:
  struct Curvature {
    V phi, h;
  };

  // Sums of phi(g) and, with kSlant, of e h.
  template <bool kSlant, class Next = NothingAhead>
  D3PM_INLINE Curvature curvature(const Real* e, int64_t count, const Line& line,
                                  const Next& next = {}) {
    return is_tame(line) ? sum_pairs<kSlant, true>(e, count, line, next)
                         : sum_pairs<kSlant, false>(e, count, line, next);
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
  D3PM_INLINE void gradient(Real* e, int64_t count, const Line& line, const V& steep,
                            const V& flat) {
    is_tame(line) ? slope_pairs<true>(e, count, line, steep, flat)
                  : slope_pairs<false>(e, count, line, steep, flat);
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
  // Whether the product of two y is a normal number.
  static bool is_tame(const Line& line) {
    const V top = line.ratio + line.slope;
    const Real limit = M::pair_limit;
    return min_lanes<Real>(line.ratio) > 1 / limit && max_lanes<Real>(top) < limit;
  }

  D3PM_INLINE typename VectorOf<Real>::Bits is_apart(const V& e) {
    return bit_cast<typename VectorOf<Real>::Bits>(e) < 0;
  }

  template <bool kSlant, bool kTame, class Next>
  D3PM_INLINE Curvature sum_pairs(const Real* e, int64_t count, const Line& line,
                                  const Next& next) {
    Curvature sum = {};
    const V one = splat<Real>(1);
    const auto add = [&](const V& e1, const V& e2) D3PM_MEMBER {
      const Point at1(line, e1), at2(line, e2);
      const auto apart1 = is_apart(e1), apart2 = is_apart(e2);
      const V g1 = apart1 ? V{} : at1.g, y1 = apart1 ? one : at1.y;
      const V g2 = apart2 ? V{} : at2.g, y2 = apart2 ? one : at2.y;
      sum.phi += kTame ? M::phi_pair(g1, y1, g2, y2) : M::phi(g1, y1) + M::phi(g2, y2);
      const V pull1 = e1 * g1, pull2 = e2 * g2;
      if (kSlant) sum.h += kTame ? (pull1 * y2 + pull2 * y1) / (y1 * y2) : pull1 / y1 + pull2 / y2;
    };
    int64_t v = 0;
    for (; v + 2 <= count; v += 2) {
      next(v);
      next(v + 1);
      add(load<V>(e + v * kWidth), load<V>(e + (v + 1) * kWidth));
    }
    if (v < count) add(load<V>(e + v * kWidth), -V{});
    return sum;
  }

  template <bool kTame>
  D3PM_INLINE void slope_pairs(Real* e, int64_t count, const Line& line, const V& steep,
                               const V& flat) {
    int64_t v = 0;
    for (; v + 2 <= count; v += 2) {
      const V e1 = load<V>(e + v * kWidth), e2 = load<V>(e + (v + 1) * kWidth);
      const Point at1(line, e1), at2(line, e2);
      const V inverse = splat<Real>(1) / (at1.y * at2.y);
      const V h1 = kTame ? at1.g * at2.y * inverse : at1.g / at1.y;
      const V h2 = kTame ? at2.g * at1.y * inverse : at2.g / at2.y;
      store(e + v * kWidth, e1 * (steep * h1 + flat));
      store(e + (v + 1) * kWidth, e2 * (steep * h2 + flat));
    }
    if (v == count) return;
    const V last = load<V>(e + v * kWidth);
    const Point at(line, last);
    store(e + v * kWidth, last * (steep * (at.g / at.y) + flat));
  }
};
