// What rows of logits say of their tokens, for one set of vector instructions: each is read once.
// All of a law is relative to its largest class, so that what is nearly sure keeps its digits.

#include "shaped_row.h"

#include "class_draw.h"

template <class Element>
class RowPredictor {
  using Real = typename Memory<Element>::Real;
  using V = typename VectorOf<Real>::Type;
  using M = Math<Real>;
  static constexpr int kWidth = kLanes<Real>;

 public:
  explicit RowPredictor(const Predict& call)
      : call_(call),
        row_(call.num_tokens, call.num_classes, call.shaping.forbidden),
        shaped_(row_, call.logits, call.shaping),
        raw_(row_.padded),
        made_(shaped_.has_cuts() ? row_.padded : 0),
        e_(std::min(row_.padded, kTile)),
        draw_(row_.padded, kTile) {}

  bool predict(int64_t begin, int64_t end) {
    bool bad = false;
    for (int64_t token = begin; token < end; ++token) bad |= !predict(token);
    return bad;
  }

 private:
  struct Law {
    Real top;
    int64_t argmax;
    double others;    // the sum of exp(logit - top) but for the largest
    double surprise;  // the sum of these times logit - top
    Real second;      // the next largest logit less the largest

    double log_total() const { return std::log1p(others); }
    bool exists() const { return std::isfinite(top) && std::isfinite(others); }
  };

  bool predict(int64_t token) {
    const int64_t known = call_.known[token];
    if (known != kNone) {
      const bool good = known >= 0;
      good ? write(token, known, known, {0, 0, 1, 1, 0, 0}) : write_none(token);
      return good;
    }
    Real* row = raw_.data();
    Real top = shaped_.guided(token, row);
    const Law raw = law_of(row, top);
    if (!raw.exists()) return write_none(token), false;
    Law made = raw;
    if (shaped_.has_cuts()) {
      row = std::copy_n(raw_.data(), row_.padded, made_.data()) - row_.padded;
      top = shaped_.cut(top, row);
      made = law_of(row, top);
    }
    const int64_t drawn = call_.samples ? draw(row, made.top, token) : raw.argmax;
    const double total = 1 + raw.others;
    const auto log_p = [drawn](const Law& law, const Real* of) {
      return static_cast<double>(of[drawn] - law.top) - law.log_total();
    };
    write(token, drawn, raw.argmax,
          {log_p(made, row), log_p(raw, raw_.data()), 1 / total,
           -std::expm1(static_cast<double>(raw.second)) / total,
           raw.log_total() - raw.surprise / total, raw.top + raw.log_total()});
    return true;
  }

  // Of a row whose largest logit is known; fills in the sums of its tiles.
  Law law_of(Real* row, Real top) const {
    Law law{top, std::find(row, row + row_.classes, top) - row, 0, 0, 0};
    if (law.argmax == row_.classes) law.argmax = 0;  // NaN only
    row[law.argmax] = -INFINITY;
    V second = splat<Real>(-INFINITY);
    for (int64_t begin = 0; begin < row_.padded; begin += kTile) {
      double others = 0;
      const int64_t last = std::min(row_.padded, begin + kTile);
      for (int64_t start = begin; start < last; start += kStretch) {
        V sum = {}, surprise = {};
        for (int64_t j = start; j < std::min(last, start + kStretch); j += kWidth) {
          const V less = load<V>(row + j) - top, e = M::exp(less);
          sum += e;
          surprise += e * (less < kLeast ? splat<Real>(kLeast) : less);
          second = less > second ? less : second;
        }
        others += sum_lanes<Real>(sum);
        law.surprise += sum_lanes<Real>(surprise);
      }
      draw_.sums()[begin / kTile] = others + (law.argmax / kTile == begin / kTile);
      law.others += others;
    }
    row[law.argmax] = top;
    law.second = max_lanes<Real>(second);
    return law;
  }

  int64_t draw(const Real* row, Real top, int64_t token) const {
    const auto numbers = [&](int64_t pair) {
      return uniforms_at(call_.seeds[token], call_.step, call_.positions[token], pair);
    };
    const int64_t first = draw_.tile(numbers), count = draw_.size(first);
    std::copy_n(row + first, count, e_.data());
    exponentiate(e_.data(), count / kWidth, splat<Real>(top));
    const double target = numbers(first / kTile).draw * draw_.sum(e_.data(), first);
    return draw_.of_tile(e_.data(), first, target);
  }

  void write(int64_t token, int64_t drawn, int64_t argmax,
             const std::array<double, 6>& numbers) const {
    call_.tokens[2 * token] = drawn;
    call_.tokens[2 * token + 1] = argmax;
    std::copy(numbers.begin(), numbers.end(), static_cast<Real*>(call_.numbers) + 6 * token);
  }

  void write_none(int64_t token) const {
    std::array<double, 6> none;
    none.fill(NAN);
    write(token, kNone, kNone, none);
  }

  static constexpr Real kLeast = -1000;  // its exponential is 0, as that of -inf

  const Predict& call_;
  const RowReader<Element> row_;
  const ShapedRow<Element> shaped_;
  const Scratch<Real> raw_, made_, e_;
  const ClassDraw<Real> draw_;
};

template <class Element>
static bool predict(const Predict& call, int64_t begin, int64_t end) {
  return RowPredictor<Element>(call).predict(begin, end);
}
