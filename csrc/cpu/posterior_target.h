// Log-probabilities of a step, and their gradient, for one set of vector instructions. The classes
// x_0, x_t and the mask are written one by one, in double, after the vectors of all.

#include "../posterior_row.h"
#include "row.h"

// Of single numbers, in double; what counts as zero does so in Real.
template <class Real>
struct MathOfOne {
  using V = double;
  using Bits = bool;
  static constexpr double tiny = Math<Real>::tiny;

  static double splat(double value) { return value; }
  static double select(bool mask, double yes, double no) { return mask ? yes : no; }
  static double log(double x) { return std::log(x); }
};

template <class Element>
class PosteriorRow {
 protected:
  using Real = typename Memory<Element>::Real;
  using V = typename VectorOf<Real>::Type;
  using M = Math<Real>;
  using One = MathOfOne<Real>;
  static constexpr int kWidth = kLanes<Real>;

  explicit PosteriorRow(const Chain& chain, void* out)
      : chain_(chain),
        row_(chain),
        vector_(chain.template vector<Real>()),
        pi_(row_.padded),
        step_of_(chain),
        out_(static_cast<Element*>(out)) {
    for (int64_t j = 0; j < row_.padded; ++j)
      pi_.data()[j] = static_cast<Real>(j < row_.classes ? vector_(1, 0, j) : 0);
  }

  void fill(Element* to, double value) const {
    row_.write(to, [&](int64_t) { return splat<Real>(value); });
  }

  V read_row(const Element* from, int64_t token, int64_t j) const {
    return j + kWidth <= row_.classes ? read(from + j) : row_.tail(from, token, 0);
  }

  D3PM_MEMBER V pi(int64_t j) const { return load<V>(pi_.data() + j); }

  const Chain& chain_;
  const RowReader<Element> row_;
  const Vector<Real> vector_;
  const Scratch<Real> pi_;
  StepCursor step_of_;
  Element* const out_;
};

template <class Element>
class QPosteriorRow : PosteriorRow<Element> {
  using Base = PosteriorRow<Element>;
  using typename Base::M;
  using typename Base::One;
  using typename Base::Real;

 public:
  explicit QPosteriorRow(const QPosterior& call) : Base(call.chain, call.out), call_(call) {}

  bool write(int64_t token) {
    Element* out = this->out_ + token * this->row_.classes;
    const int64_t x0 = call_.x0[token], x_t = call_.x_t[token];
    const StepCoefficients* step = this->step_of_(token);
    if (!step || !this->chain_.is_class(x0) || !this->chain_.is_class(x_t))
      return this->fill(out, NAN), true;
    const QPosteriorToken<One, Real> of(*step, this->vector_, x0, x_t);
    if (!of.is_possible) return this->fill(out, NAN), false;

    const double weight = of.leave * of.bar_base;
    if (this->vector_.pi) {
      const Real narrow = static_cast<Real>(weight);
      this->row_.write(out, [&](int64_t j) { return M::log(narrow * this->pi(j)); });
    } else {
      this->fill(out, std::log(weight * this->vector_.uniform));
    }
    const auto write_special = [&](int64_t j) {
      write_one(out + j, static_cast<Real>(of.log_q(j)));
    };
    if (this->chain_.mask_id >= 0) write_special(this->chain_.mask_id);
    write_special(x_t);
    write_special(x0);
    return false;
  }

 private:
  const QPosterior& call_;
};

template <class Element>
class PPosteriorRow : PosteriorRow<Element> {
  using Base = PosteriorRow<Element>;
  using Base::kWidth;
  using typename Base::M;
  using typename Base::One;
  using typename Base::Real;
  using typename Base::V;

 public:
  explicit PPosteriorRow(const PPosterior& call)
      : Base(call.chain, call.out), call_(call), e_(this->row_.padded) {}

  bool write(int64_t token) {
    Element* out = this->out_ + token * this->row_.classes;
    const int64_t x_t = call_.x_t[token];
    const StepCoefficients* step = this->step_of_(token);
    if (!step || !this->chain_.is_class(x_t)) return this->fill(out, NAN), true;

    of_ = PPosteriorToken<One, Real>(*step, this->vector_, call_, x_t);
    if (!of_.is_possible()) return this->fill(out, NAN), false;
    if (of_.stays()) {
      this->fill(out, call_.upstream ? 0 : -INFINITY);
      write_one(out + x_t, Real(0));
      return false;
    }
    predict(token);
    call_.upstream ? write_gradient(out, token) : write_log_p(out, token);
    return false;
  }

 private:
  const Element* logits(int64_t token) const {
    return static_cast<const Element*>(call_.logits) + token * this->row_.classes;
  }

  D3PM_MEMBER V e(int64_t j) const { return load<V>(e_.data() + j); }

  void predict(int64_t token) {
    top_ = this->row_.exponentials(logits(token), token, e_.data());
    e_.data()[of_.x_t] *= static_cast<Real>(of_.tilt);
    of_.predict(this->row_.sum_of([&](int64_t j) { return e(j); }), e_.data()[of_.x_t]);
    slope_ = static_cast<Real>(of_.bar_keep * of_.inv);
    base_ = static_cast<Real>(of_.bar_base);
  }

  // At classes that are neither x_t nor the mask.
  D3PM_MEMBER Mixture<M> mixture(int64_t j) const { return {slope_ * e(j), base_ * this->pi(j)}; }

  void write_log_p(Element* out, int64_t token) {
    const Element* l = logits(token);
    const LogP<One, Real> log_p(of_);
    const Real shift = static_cast<Real>(log_p.log_leave);
    const Real alone_shift = static_cast<Real>(log_p.log_bar_keep - log_p.log_sum);
    const auto alone = [&](int64_t j) {
      return (this->read_row(l, token, j) - top_) + alone_shift;
    };
    if (of_.bar_base > M::tiny) {
      this->row_.write(out, [&](int64_t j) {
        const V log_model = alone(j);
        return mixture(j).log(log_model) + shift;
      });
    } else {
      this->row_.write(out, [&](int64_t j) { return alone(j) + shift; });
    }
    const auto write_special = [&](int64_t j) {
      const Real logit = j == this->chain_.forbidden ? Real(-INFINITY) : read_one(l + j);
      write_one(out + j, static_cast<Real>(log_p(logit - top_, e_.data()[j], j)));
    };
    if (this->chain_.mask_id >= 0) write_special(this->chain_.mask_id);
    write_special(of_.x_t);
  }

  void write_gradient(Element* out, int64_t token) {
    const Element* upstream =
        static_cast<const Element*>(call_.upstream) + token * this->row_.classes;
    const auto pull = [&](int64_t j) { return this->read_row(upstream, token, j); };
    const double sum = this->row_.sum_of(pull);
    double weighted = this->row_.sum_of([&](int64_t j) { return mixture(j).share() * pull(j); });
    const int64_t mask = this->chain_.mask_id == of_.x_t ? -1 : this->chain_.mask_id;
    const auto correction = [&](int64_t j) {
      const Real generic = mixture(j / kWidth * kWidth).share()[j % kWidth];
      const double exact = of_.share(e_.data()[j], j);
      return (exact - static_cast<double>(generic)) * static_cast<double>(read_one(upstream + j));
    };
    weighted += correction(of_.x_t) + (mask < 0 ? 0 : correction(mask));

    const PosteriorGradient<One, Real> gradient(of_, sum, weighted);
    const Real common = static_cast<Real>((of_.u * gradient.pull + gradient.level) * of_.inv);
    this->row_.write(out, [&](int64_t j) { return mixture(j).share() * pull(j) - e(j) * common; });
    const auto write_special = [&](int64_t j) {
      write_one(out + j, static_cast<Real>(gradient(read_one(upstream + j), e_.data()[j], j)));
    };
    if (mask >= 0) write_special(mask);
    write_special(of_.x_t);
  }

  const PPosterior& call_;
  const Scratch<Real> e_;
  PPosteriorToken<One, Real> of_;
  Real top_, slope_, base_;
};

template <class Row, class Call>
static bool write_rows(const Call& call, int64_t begin, int64_t end) {
  Row row(call);
  bool bad = false;
  for (int64_t token = begin; token < end; ++token) bad |= row.write(token);
  return bad;
}

template <class Element>
static bool q_posterior(const QPosterior& call, int64_t begin, int64_t end) {
  return write_rows<QPosteriorRow<Element>>(call, begin, end);
}

template <class Element>
static bool p_posterior(const PPosterior& call, int64_t begin, int64_t end) {
  return write_rows<PPosteriorRow<Element>>(call, begin, end);
}
