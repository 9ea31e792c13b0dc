// Rows of logits as they are read for sampling: guided, divided by a temperature, and cut to the
// largest.
//
// The cuts by number and by mass keep the fewest classes, largest first, whose weights reach a
// target: k weights of 1, or the share p of exp(logit). The least logit they keep is found by
// bisection, over the floating point numbers in order: each turn takes a bound to the next logit of
// the row.

#include "row.h"

// Floating point numbers as integers of the same order, -0 as 0.
template <class Real>
class Ordered {
  using Int = typename VectorOf<Real>::Int;
  using Unsigned = std::make_unsigned_t<Int>;

 public:
  // The number halfway from low to high, above low.
  static Real between(Real low, Real high) {
    const Unsigned first = flip(bit_cast<Int>(low)), distance = flip(bit_cast<Int>(high)) - first;
    return bit_cast<Real>(flip(static_cast<Int>(first + distance - distance / 2)));
  }

 private:
  static Int flip(Int bits) {
    constexpr Unsigned sign = Unsigned(1) << (8 * sizeof(Int) - 1);
    return bits < 0 ? static_cast<Int>(sign - static_cast<Unsigned>(bits)) : bits;
  }
};

template <class Element>
class ShapedRow {
  using Real = typename Memory<Element>::Real;
  using V = typename VectorOf<Real>::Type;
  using Bits = typename VectorOf<Real>::Bits;
  static constexpr int kWidth = kLanes<Real>;

 public:
  ShapedRow(const RowReader<Element>& row, const void* logits, const Shaping& shaping)
      : row_(row), logits_(logits), shaping_(shaping), weights_(row.padded) {}

  // Makes a token's row, padded with -inf, and returns its largest logit.
  Real make(int64_t token, Real* to) const { return cut(guided(token, to), to); }

  // The same before temperature and truncation.
  Real guided(int64_t token, Real* to) const {
    const Real top = read(logits_, token, to);
    return shaping_.unconditional ? guide(token, to) : top;
  }

  // Whether these change anything.
  bool has_cuts() const {
    return shaping_.temperature != 1 || shaping_.top_k < row_.classes || shaping_.top_p < 1 ||
           shaping_.min_p > 0;
  }

  // Divides and truncates a guided row in place, given its largest logit.
  Real cut(Real top, Real* to) const {
    if (shaping_.temperature != 1) top = divide(top, to);
    if (shaping_.top_k < row_.classes) {
      std::fill_n(weights_.data(), row_.padded, Real(1));
      keep(top, static_cast<Real>(shaping_.top_k), to);
    }
    if (shaping_.top_p < 1) {
      std::copy_n(to, row_.padded, weights_.data());
      exponentiate(weights_.data(), row_.padded / kWidth, splat<Real>(top));
      const Real total = row_.sum_of([&](int64_t j) D3PM_MEMBER { return weights(j); });
      keep(top, static_cast<Real>(shaping_.top_p) * total, to);
    }
    if (shaping_.min_p > 0) {
      const V least = splat<Real>(std::log(shaping_.min_p));
      change(to, [&](const V& x, int64_t)
                     D3PM_MEMBER { return x - top < least ? splat<Real>(-INFINITY) : x; });
    }
    return top;
  }

 private:
  Real read(const void* rows, int64_t token, Real* to) const {
    const Element* row = static_cast<const Element*>(rows) + token * row_.classes;
    return row_.copy(row, token, to, to + row_.whole);
  }

  V weights(int64_t j) const { return load<V>(weights_.data() + j); }

  // Calls change(x) on every vector of the row and returns the largest logit.
  template <class Change>
  D3PM_MEMBER Real change(Real* logits, const Change& change) const {
    V top = splat<Real>(-INFINITY);
    for (int64_t j = 0; j < row_.padded; j += kWidth) {
      const V x = change(load<V>(logits + j), j);
      store(logits + j, x);
      top = x > top ? x : top;
    }
    return max_lanes<Real>(top);
  }

  // The interpolation starts from the nearer end, so that it is exact at both.
  Real guide(int64_t token, Real* logits) const {
    read(shaping_.unconditional, token, weights_.data());
    const bool far = std::abs(shaping_.guidance) >= 0.5;
    const Real share = static_cast<Real>(far ? shaping_.guidance - 1 : shaping_.guidance);
    return change(logits, [&](const V& x, int64_t j) D3PM_MEMBER {
      const V other = weights(j), mixed = (far ? x : other) + share * (x - other);
      return (x == -INFINITY) | (other == -INFINITY) ? splat<Real>(-INFINITY) : mixed;
    });
  }

  // Takes the largest to 0: no digit is lost near it, and none overflows.
  Real divide(Real top, Real* logits) const {
    const Real least = std::max(top, std::numeric_limits<Real>::lowest());
    const Real temperature = static_cast<Real>(shaping_.temperature);
    return change(logits,
                  [&](const V& x, int64_t) D3PM_MEMBER { return (x - least) / temperature; });
  }

  // Forbids all but the fewest classes, largest first, whose weights reach the target.
  void keep(Real top, Real target, Real* logits) const {
    Real low = -INFINITY, high = top;  // the weights from low on reach the target
    while (low < high) {
      const Real middle = Ordered<Real>::between(low, high);
      V next = splat<Real>(INFINITY), before = splat<Real>(-INFINITY);
      const Real sum = row_.sum_of([&](int64_t j) D3PM_MEMBER {
        const V x = load<V>(logits + j);
        const Bits above = x >= middle;
        next = above & (x < next) ? x : next;
        before = ~above & (x > before) ? x : before;
        return above ? weights(j) : V{};
      });
      if (sum >= target)
        low = min_lanes<Real>(next);
      else
        high = max_lanes<Real>(before);
    }
    Real sum = row_.sum_of([&](int64_t j) D3PM_MEMBER {
      const V x = load<V>(logits + j);
      store(logits + j, x < low ? splat<Real>(-INFINITY) : x);
      return x > low ? weights(j) : V{};
    });
    for (int64_t j = 0; j < row_.classes; ++j) {
      if (logits[j] != low) continue;
      if (sum >= target) logits[j] = -INFINITY;
      sum += weights_.data()[j];
    }
  }

  const RowReader<Element> row_;
  const void* const logits_;
  const Shaping& shaping_;
  const Scratch<Real> weights_;
};
