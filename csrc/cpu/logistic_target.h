// The truncated discretized logistic (D3PM, appendix A.8), for one set of vector instructions.
//
// With s the logistic function and K + 1 edges x_k = ((2k - K) / (K - 1) - loc) / scale, d apart:
//
//   logit_k = log(s(x_{k+1}) - s(x_k)) = log s(x_{k+1}) + log s(-x_k) + log(1 - exp(-d))
//
// For G = dL/dlogit, which is 0 outside of the row, the sums go over edges:
//
//   F_k = G_k s(x_k) - G_{k-1} s(-x_k)
//   dL/dloc = sum(F) / scale,  dL/dlog_scale = sum(x F) - d / (exp(d) - 1) sum(G)
//
// s(x) = (1 + tanh(x / 2)) / 2, and what the halves add cancels in the sums. Where bins are narrow,
// d < 1, they are left out beforehand:
//
//   F_k = (G_k + G_{k-1}) tanh(x_k / 2) / 2, with d / (exp(d) - 1) + d / 2 before sum(G)

#include "row.h"

// The edges of one token. In halves of a bin loc is a whole number, which goes without rounding,
// and a rest: an edge is within ulps of itself however large loc or narrow the scale.
template <class Real>
class LogisticEdges {
  using V = typename VectorOf<Real>::Type;

 public:
  const double inverse_scale, width;  // width: d

  LogisticEdges(double loc, double log_scale, int64_t num_classes)
      : inverse_scale(std::exp(std::clamp(-log_scale, -600.0, 600.0)) * 7.38905609893065023),
        width(2 * inverse_scale / static_cast<double>(num_classes - 1)),
        num_classes_(num_classes) {
    constexpr double limit = std::numeric_limits<Real>::max() / 4;
    const double halves = static_cast<double>(num_classes - 1);
    loc = std::clamp(loc, -limit / halves, limit / halves);
    whole_ = static_cast<Real>(std::nearbyint(loc * halves));
    rest_ = static_cast<Real>(std::fma(loc, halves, -static_cast<double>(whole_)));
    // A scale too narrow for this type: the narrowest at which no edge overflows.
    const double farthest = static_cast<double>(num_classes) + std::abs(loc) * halves;
    slope_ = static_cast<Real>(std::min(width / 2, limit / farthest));
  }

  // Edges k, k + 1, ...
  V operator()(int64_t k) const {
    const V steps = 2 * __builtin_convertvector(iota<Real>(), V) + first(k);
    return ((steps - whole_) - rest_) * slope_;
  }

  double at(int64_t k) const {
    return (static_cast<double>(first(k) - whole_) - rest_) * static_cast<double>(slope_);
  }

 private:
  Real first(int64_t k) const { return static_cast<Real>(2 * k - num_classes_); }

  const int64_t num_classes_;
  Real whole_, rest_, slope_;
};

template <class Element>
class LogisticRow {
 protected:
  using Real = typename Memory<Element>::Real;
  using V = typename VectorOf<Real>::Type;
  using M = Math<Real>;
  static constexpr int kWidth = kLanes<Real>;

  explicit LogisticRow(const Logistic& logistic)
      : classes_(logistic.num_classes), edge_corrected_(logistic.edge_corrected), of_(logistic) {}

  LogisticEdges<Real> edges(int64_t token) const {
    return {read_one(static_cast<const Element*>(of_.loc) + token),
            read_one(static_cast<const Element*>(of_.log_scale) + token), classes_};
  }

  const int64_t classes_;
  const bool edge_corrected_;

 private:
  const Logistic& of_;
};

template <class Element>
class LogisticLogitsRow : LogisticRow<Element> {
  using Base = LogisticRow<Element>;
  using Base::kWidth;
  using typename Base::M;
  using typename Base::Real;
  using typename Base::V;

 public:
  explicit LogisticLogitsRow(const LogisticLogits& call)
      : Base(call.logistic),
        row_(call.logistic.num_tokens, this->classes_),
        below_(row_.padded + 2 * kWidth),
        above_(row_.padded + 2 * kWidth),
        out_(static_cast<Real*>(call.out)) {}

  void write(int64_t token) {
    const auto edges = this->edges(token);
    Real *below = below_.data(), *above = above_.data();
    for (int64_t k = 0; k <= this->classes_; k += kWidth) {
      const V x = edges(k);
      const V e = M::exp(x > 0 ? -x : x);
      const V log_1e = e - M::phi(e, 1 + e);
      store(below + k, (x < 0 ? x : V{}) - log_1e);
      store(above + k, (x > 0 ? -x : V{}) - log_1e);
    }
    Real* out = out_ + token * this->classes_;
    const Real log_inside = static_cast<Real>(std::log(-std::expm1(-edges.width)));
    row_.write(out,
               [&](int64_t k) { return load<V>(below + k + 1) + load<V>(above + k) + log_inside; });
    if (this->edge_corrected_) {
      out[0] = below[1];
      out[this->classes_ - 1] = above[this->classes_ - 1];
    }
  }

 private:
  const RowReader<Real> row_;
  const Scratch<Real> below_, above_;  // of each edge: log s(x) and log s(-x)
  Real* const out_;
};

template <class Element>
class LogisticGradientRow : LogisticRow<Element> {
  using Base = LogisticRow<Element>;
  using Base::kWidth;
  using typename Base::M;
  using typename Base::Real;
  using typename Base::V;

 public:
  explicit LogisticGradientRow(const LogisticGradient& call)
      : Base(call.logistic),
        upstream_(static_cast<const Real*>(call.upstream)),
        loc_(static_cast<Element*>(call.loc)),
        log_scale_(static_cast<Element*>(call.log_scale)),
        memory_(this->classes_ + 3 * kWidth) {
    std::fill_n(memory_.data(), this->classes_ + 3 * kWidth, Real(0));
  }

  void write(int64_t token) {
    const auto edges = this->edges(token);
    const int64_t last = this->classes_ - 1;
    const Real* upstream = upstream_ + token * this->classes_;
    Real* g = memory_.data() + kWidth;  // zeros on both sides
    std::copy_n(upstream, this->classes_, g);
    if (this->edge_corrected_) g[0] = g[last] = 0;

    Sums sums = edges.width < 1 ? narrow_bins(edges, g) : wide_bins(edges, g);
    if (this->edge_corrected_) {
      const double x_first = edges.at(1), x_last = edges.at(last);
      sums.add_outer(x_first, -static_cast<double>(upstream[0]) / (1 + std::exp(x_first)));
      sums.add_outer(x_last, static_cast<double>(upstream[last]) / (1 + std::exp(-x_last)));
    }
    write_one(loc_ + token, static_cast<Real>(sums.f * edges.inverse_scale));
    write_one(log_scale_ + token, static_cast<Real>(sums.xf));
  }

 private:
  struct Sums {
    double f, xf;

    void add_outer(double x, double f_of_x) {
      f += f_of_x;
      xf += x * f_of_x;
    }
  };

  Sums narrow_bins(const LogisticEdges<Real>& edges, const Real* g) const {
    const double half = edges.width / 2;
    return sum(edges, g, edges.width / std::expm1(edges.width) + half,
               [&](const V& x, const V& here, const V& before) D3PM_MEMBER {
                 const V m = M::expm1(x > 0 ? -x : x);
                 const V tanh = (x > 0 ? -m : m) / (2 + m);
                 return (here + before) * static_cast<Real>(0.5) * tanh;
               });
  }

  Sums wide_bins(const LogisticEdges<Real>& edges, const Real* g) const {
    return sum(edges, g, edges.width / std::expm1(edges.width),
               [&](const V& x, const V& here, const V& before) D3PM_MEMBER {
                 const V e = M::exp(x > 0 ? -x : x), near = 1 / (1 + e), far = e * near;
                 return here * (x > 0 ? near : far) - before * (x > 0 ? far : near);
               });
  }

  template <class Term>
  D3PM_MEMBER Sums sum(const LogisticEdges<Real>& edges, const Real* g, double per_g,
                       const Term& term) const {
    Sums sums = {};
    for (int64_t begin = 0; begin <= this->classes_; begin += kStretch) {
      V f = {}, xf = {}, total = {};
      const int64_t end = std::min(this->classes_ + 1, begin + kStretch);
      for (int64_t k = begin; k < end; k += kWidth) {
        const V x = edges(k), here = load<V>(g + k);
        const V f_of_x = term(x, here, load<V>(g + k - 1));
        f += f_of_x;
        xf += x * f_of_x;
        total += here;
      }
      sums.f += sum_lanes<Real>(f);
      sums.xf += sum_lanes<Real>(xf) - per_g * sum_lanes<Real>(total);
    }
    return sums;
  }

  const Real* const upstream_;
  Element *const loc_, *const log_scale_;
  const Scratch<Real> memory_;
};

template <class Row, class Call>
static bool write_tokens(const Call& call, int64_t begin, int64_t end) {
  Row row(call);
  for (int64_t token = begin; token < end; ++token) row.write(token);
  return false;
}

template <class Element>
static bool logistic_logits(const LogisticLogits& call, int64_t begin, int64_t end) {
  return write_tokens<LogisticLogitsRow<Element>>(call, begin, end);
}

template <class Element>
static bool logistic_gradient(const LogisticGradient& call, int64_t begin, int64_t end) {
  return write_tokens<LogisticGradientRow<Element>>(call, begin, end);
}
