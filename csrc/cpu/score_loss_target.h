// The loss by scores and its gradient for a run of tokens, for one set of vector instructions: a
// row is read once and its gradient written once.

#include "../score_row.h"
#include "row.h"

template <class Element>
class ScoreRows {
  using Real = typename Memory<Element>::Real;
  using V = typename VectorOf<Real>::Type;
  using Bits = typename VectorOf<Real>::Bits;
  using Int = typename VectorOf<Real>::Int;
  using M = Math<Real>;
  using Point = ScorePoint<M>;
  static constexpr int kWidth = kLanes<Real>;

 public:
  explicit ScoreRows(const ScoreLoss& call)
      : whole_(call),
        call_(call.of),
        row_(call_.chain.num_tokens, call_.chain.num_classes),
        step_of_(call_.chain),
        has_pi_(call_.chain.pi != nullptr),
        pi_(has_pi_ ? row_.padded : 0),
        levels_(has_pi_ ? row_.padded : 0),
        rests_(has_pi_ ? row_.padded : 0),
        y_(row_.padded) {
    if (!has_pi_) return;
    pad(call_.chain.pi, pi_);
    pad(call.levels, levels_);
    pad(call.rests, rests_);
  }

  // Returns whether an index is out of its range.
  bool operator()(int64_t token) {
    const ScoreToken<Real> of(whole_, step_of_(token), token);
    of.write(call_, token, of.reads ? sum(of, token) : Real(0));
    if (call_.grad) write_gradient(of, token);
    return of.bad;
  }

 private:
  // Sums the terms of a row, and turns it into slopes.
  Real sum(const ScoreToken<Real>& of, int64_t token) {
    const Element* const from = static_cast<const Element*>(call_.logits) + token * row_.classes;
    Real* const y = y_.data();
    row_.copy(from, token, y, y + row_.whole);
    const Real y_x0 = y[of.x0], y_mask = of.has_mask ? y[of.apart] : Real(0);
    const auto ratio = splat<Real>(of.of_rest.ratio);
    const auto high = splat<Real>(of.of_rest.high), low = splat<Real>(of.of_rest.low);
    const Bits end = all(row_.classes), x0 = all(of.x0), x_t = all(of.x_t), mask = all(of.apart);
    Bits classes = iota<Real>();
    double total = row_.sum_of([&](int64_t j) D3PM_MEMBER {
      const Point at =
          has_pi_ ? Point(load<V>(y + j), ratio * load<V>(pi_.data() + j),
                          high + load<V>(levels_.data() + j), low + load<V>(rests_.data() + j))
                  : Point(load<V>(y + j), ratio, high, low);
      const Bits apart = (classes == x0) | (classes == x_t) | (classes == mask) | (classes >= end);
      classes += all(kWidth);
      store(y + j, apart ? V{} : at.slope);
      return apart ? V{} : at.term;
    });
    if (of.x0 != of.x_t) total += add(of.of_x0, y_x0, y[of.x0]);
    if (of.has_mask) total += add(of.of_mask, y_mask, y[of.apart]);
    return static_cast<Real>(total);
  }

  // Writes the slope of one class, and returns its term.
  static Real add(const ScoreRatio<Real>& of, Real y, Real& slope) {
    const Point at(splat<Real>(y), splat<Real>(of.ratio), splat<Real>(of.high),
                   splat<Real>(of.low));
    slope = at.slope[0];
    return at.term[0];
  }

  void write_gradient(const ScoreToken<Real>& of, int64_t token) const {
    Element* const to = static_cast<Element*>(call_.grad) + token * row_.classes;
    const V value = splat<Real>(of.value), zero = V{};
    const Real factor = of.slope * call_.template factor<Real>();
    if (!of.reads)
      row_.write(to, [&](int64_t) { return value; });
    else if (factor == 0)
      row_.write(to, [&](int64_t) { return zero; });
    else
      row_.write(to, [&](int64_t j) { return factor * load<V>(y_.data() + j); });
  }

  static Bits all(int64_t value) { return Bits{} + static_cast<Int>(value); }

  void pad(const void* from, const Scratch<Real>& to) const {
    std::copy_n(static_cast<const Real*>(from), row_.classes, to.data());
    std::fill(to.data() + row_.classes, to.data() + row_.padded, Real(0));
  }

  const ScoreLoss& whole_;
  const Loss& call_;
  const RowReader<Element> row_;
  StepCursor step_of_;
  const bool has_pi_;
  const Scratch<Real> pi_, levels_, rests_, y_;
};

template <class Element>
static bool score_loss(const ScoreLoss& call, int64_t begin, int64_t end) {
  ScoreRows<Element> rows(call);
  bool bad = false;
  for (int64_t token = begin; token < end; ++token) bad |= rows(token);
  return bad;
}
