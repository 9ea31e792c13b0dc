// Log-probabilities of a step, and their gradient, for one set of vector instructions.
//
//   log q_j = log(u + a [j = x_t]) + log d_j - log Zq
//   log p_j = log(u + a [j = x_t]) + log f_j - log Z
//
// For G = dL/dlog p:  dL/dlogit_i = w_i G_i - s_i (c_i A / Z sum(G) + D), with c_i =
// u + a [i = x_t], w_i = A s_i / f_i (1 where ub_i = 0) and D what makes the sum over i zero.

#include "row.h"

template <class Element>
class PosteriorRow {
 protected:
  using Real = typename Memory<Element>::Real;
  using V = typename VectorOf<Real>::Type;
  using M = Math<Real>;
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
  using typename Base::Real;

 public:
  explicit QPosteriorRow(const QPosterior& call) : Base(call.chain, call.out), call_(call) {}

  bool write(int64_t token) {
    Element* out = this->out_ + token * this->row_.classes;
    const int64_t x0 = call_.x0[token], x_t = call_.x_t[token];
    const StepCoefficients* step = this->step_of_(token);
    if (!step || !this->chain_.is_class(x0) || !this->chain_.is_class(x_t))
      return this->fill(out, NAN), true;

    const double u = this->vector_(step->base, step->mask, x_t);
    const auto truth = [&](int64_t j) {
      return this->vector_(step->bar_base, step->bar_mask, j) + (j == x0 ? step->bar_keep : 0);
    };
    const double zq = u + step->keep * truth(x_t);
    if (zq == 0) return this->fill(out, NAN), false;

    const Real weight = static_cast<Real>(u / zq * step->bar_base);
    if (this->vector_.pi) {
      this->row_.write(out, [&](int64_t j) {
        return M::log(weight * load<typename VectorOf<Real>::Type>(this->pi_.data() + j));
      });
    } else {
      this->fill(out, std::log(u / zq * step->bar_base * this->vector_.uniform));
    }
    const auto write_special = [&](int64_t j) {
      const double reach = (u + (j == x_t ? step->keep : 0)) / zq;
      write_one(out + j, static_cast<Real>(std::log(reach * truth(j))));
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
  using typename Base::Real;
  using typename Base::V;

 public:
  explicit PPosteriorRow(const PPosterior& call)
      : Base(call.chain, call.out), call_(call), e_(this->row_.padded) {}

  bool write(int64_t token) {
    Element* out = this->out_ + token * this->row_.classes;
    x_t_ = call_.x_t[token];
    const StepCoefficients* step = this->step_of_(token);
    if (!step || !this->chain_.is_class(x_t_)) return this->fill(out, NAN), true;

    const bool direct = call_.model.predicts_x0(*step);
    a_ = direct ? 0 : step->keep;
    u_ = direct ? 1 : this->vector_(step->base, step->mask, x_t_);
    bar_keep_ = direct ? 1 : step->bar_keep;
    bar_base_ = direct ? 0 : step->bar_base;
    bar_mask_ = direct ? 0 : step->bar_mask;
    if (u_ == 0 && a_ == 0) return this->fill(out, NAN), false;  // nothing leads to x_t
    if (u_ == 0) {                                               // x_t stays, whatever the logits
      this->fill(out, call_.upstream ? 0 : -INFINITY);
      write_one(out + x_t_, Real(0));
      return false;
    }
    predict(token, !direct && call_.model.posterior_mean);
    call_.upstream ? write_gradient(out, token) : write_log_p(out, token);
    return false;
  }

 private:
  double bar(int64_t j) const { return this->vector_(bar_base_, bar_mask_, j); }
  double softmax(int64_t j) const { return static_cast<double>(e_.data()[j]) * inv_; }
  const Element* logits(int64_t token) const {
    return static_cast<const Element*>(call_.logits) + token * this->row_.classes;
  }

  void predict(int64_t token, bool tilted) {
    top_ = this->row_.exponentials(logits(token), token, e_.data());
    tilt_ = tilted ? posterior_mean_tilt(a_, u_, bar_keep_, bar(x_t_)) : 1.0;
    e_.data()[x_t_] *= static_cast<Real>(tilt_);
    const double sum = this->row_.sum_of([&](int64_t j) { return load<V>(e_.data() + j); });
    inv_ = 1 / sum;
    log_sum_ = std::log(sum);  // of the exponentials, in which top_ is no longer
    z_ = u_ + a_ * (bar_keep_ * softmax(x_t_) + bar(x_t_));
  }

  void write_log_p(Element* out, int64_t token) {
    const Element* l = logits(token);
    const double reach = std::log(u_ / z_), log_keep = std::log(bar_keep_);
    const Real shift = static_cast<Real>(reach);
    // Where ub_j = 0, f_j = A s_j: the level of the logits goes before anything is rounded.
    const Real alone_shift = static_cast<Real>(log_keep - log_sum_);
    const auto alone = [&](int64_t j) {
      return (this->read_row(l, token, j) - top_) + alone_shift;
    };
    if (bar_base_ > M::tiny) {
      const Real slope = static_cast<Real>(bar_keep_ * inv_), base = static_cast<Real>(bar_base_);
      this->row_.write(out, [&](int64_t j) {
        const V spread = base * load<V>(this->pi_.data() + j);
        const V log_f = M::log(slope * load<V>(e_.data() + j) + spread);
        return M::select(spread > splat<Real>(M::tiny), log_f, alone(j)) + shift;
      });
    } else {
      this->row_.write(out, [&](int64_t j) { return alone(j) + shift; });
    }
    const auto write_special = [&](int64_t j, double log_reach, double log_tilt) {
      const double spread = bar(j);
      const double log_s = static_cast<double>(read_one(l + j) - top_) + log_tilt - log_sum_;
      const double log_f =
          spread > M::tiny ? std::log(bar_keep_ * softmax(j) + spread) : log_keep + log_s;
      write_one(out + j, static_cast<Real>(log_reach + log_f));
    };
    if (this->chain_.mask_id >= 0) write_special(this->chain_.mask_id, reach, 0);
    write_special(x_t_, std::log((u_ + a_) / z_), std::log(tilt_));
  }

  void write_gradient(Element* out, int64_t token) {
    const Element* upstream =
        static_cast<const Element*>(call_.upstream) + token * this->row_.classes;
    const Real slope = static_cast<Real>(bar_keep_ * inv_), base = static_cast<Real>(bar_base_);
    const auto weight = [&](int64_t j) {
      const V spread = base * load<V>(this->pi_.data() + j);
      const V model = slope * load<V>(e_.data() + j);
      return M::select(spread > splat<Real>(M::tiny), model / (model + spread), splat<Real>(1));
    };
    const auto special_weight = [&](int64_t j) {
      const double spread = bar(j), model = bar_keep_ * softmax(j);
      return spread > M::tiny ? model / (model + spread) : 1.0;
    };
    const double sum =
        this->row_.sum_of([&](int64_t j) { return this->read_row(upstream, token, j); });
    double weighted = this->row_.sum_of(
        [&](int64_t j) { return weight(j) * this->read_row(upstream, token, j); });
    const int64_t mask = this->chain_.mask_id == x_t_ ? -1 : this->chain_.mask_id;
    const auto correction = [&](int64_t j) {
      const double g = read_one(upstream + j);
      const Real generic = weight(j / kWidth * kWidth)[j % kWidth];
      return (special_weight(j) - static_cast<double>(generic)) * g;
    };
    weighted += correction(x_t_) + (mask < 0 ? 0 : correction(mask));

    const double pull = bar_keep_ / z_ * sum;
    const double level = weighted - pull * (u_ + a_ * softmax(x_t_));
    const Real common = static_cast<Real>((u_ * pull + level) * inv_);
    this->row_.write(out, [&](int64_t j) {
      return weight(j) * this->read_row(upstream, token, j) - load<V>(e_.data() + j) * common;
    });
    const auto write_special = [&](int64_t j, double reach) {
      const double g = read_one(upstream + j);
      write_one(out + j,
                static_cast<Real>(special_weight(j) * g - softmax(j) * (reach * pull + level)));
    };
    if (mask >= 0) write_special(mask, u_);
    write_special(x_t_, u_ + a_);
  }

  const PPosterior& call_;
  const Scratch<Real> e_;
  int64_t x_t_ = 0;
  double a_, u_, bar_keep_, bar_base_, bar_mask_, tilt_, inv_, log_sum_, z_;
  Real top_;
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
