// What a row of logits predicts, before the product with Qbar_s.

template <class Element, class Work>
class DensePredictor : DenseRow<Element, Work> {
  using Base = DenseRow<Element, Work>;
  using Base::kWidth;
  using Base::row_;
  using Base::rows_;
  using typename Base::M;
  using typename Base::Real;
  using typename Base::V;
  using Wide = typename VectorOf<Real>::Wide;

 public:
  explicit DensePredictor(const DensePredict& call) : Base(call.rows), call_(call) {}

  bool operator()(int64_t n) {
    const int64_t token = rows_.tokens[n];
    a_ = this->anchor(n);
    logits_ = this->template at<Element>(call_.logits, token);
    tilt_ = call_.log_tilt ? this->template at<double>(call_.log_tilt, this->column(n)) : nullptr;
    Work* v = this->template at<Work>(call_.v, n);
    const Exponentials e = exponentiate(v);
    if (call_.loss) {
      Real* const results = static_cast<Real*>(call_.loss) + token * call_.num_results;
      std::fill_n(results, call_.num_results, Real(0));
      const double factor = this->factor(n);
      const bool with_terms = call_.num_results > 1;
      if (with_terms || call_.ce_weight != 0) {
        const double cross_entropy = (tilt_ ? untilted(v) : e).cross_entropy();
        results[0] = this->weighted(call_.ce_weight * factor, cross_entropy);
        if (with_terms) results[2] = this->weighted(factor, cross_entropy);
        if (tilt_) exponentiate(v);
      }
    }
    const double others = rows_.centred ? this->work_sum(v, nullptr) : e.others,
                 inverse = 1 / (others + e.anchor);
    Real* sums = this->sums(n);
    sums[0] = static_cast<Real>(e.anchor * inverse);
    sums[1] = static_cast<Real>(others * inverse);
    sums[2] = static_cast<Real>(inverse);
    const double anchor = rows_.joined && e.anchor > Base::kLeast ? e.anchor : 0;
    v[a_] = static_cast<Work>(rows_.centred ? -others : anchor);
    if (rows_.centred && Base::kWide) {  // more digits than `inverse` has in sums
      for (int64_t j = 0; j < row_.classes; ++j) v[j] *= static_cast<Work>(inverse);
      sums[2] = 1;
    }
    return false;
  }

 private:
  // exp(logit - top) at the anchor, and summed over the others; top - logit at the anchor.
  struct Exponentials {
    double anchor, others, below;

    // Where the anchor has the largest logit, `others` alone is what 1 is added to.
    double cross_entropy() const {
      return below + std::log1p(below == 0 ? others : others + anchor - 1);
    }
  };

  // Writes exp(logit - top), tilted; 0 at the anchor.
  D3PM_MEMBER Exponentials exponentiate(Work* v) {
    const double top = largest();
    const double here = logit(a_) - top;
    const double sum = this->sum_of([&](int64_t j, int64_t count) D3PM_MEMBER {
      V below;
      get_below(below, top, j, count);
      V e = M::exp(below);
      if (a_ >= j && a_ < j + count) e[a_ - j] = 0;
      this->put_work(v + j, e, count);
      return e;
    });
    const V anchor = M::exp(splat<Real>(here));
    return {static_cast<double>(anchor[0]), sum, -here};
  }

  Exponentials untilted(Work* v) {
    const double* tilt = std::exchange(tilt_, nullptr);
    const Exponentials e = exponentiate(v);
    tilt_ = tilt;
    return e;
  }

  // A logit of its own, as `top` is one.
  double logit(int64_t j) const {
    const double l = static_cast<double>(read_one(logits_ + j));
    return tilt_ ? l - level_ + tilt_[j] : l;
  }

  // The largest logit, tilted where there is a tilt.
  D3PM_MEMBER double largest() {
    if (tilt_) {
      level_ = 0;
      const double level = largest_of([&](Wide& to, int64_t j, int64_t count) D3PM_MEMBER {
        Wide tilt;
        get_wide(to, tilt, j, count);
        to = tilt > -INFINITY ? to : tilt;
      });
      level_ = level > -INFINITY ? level : 0;
      return largest_of([&](Wide& to, int64_t j, int64_t count)
                            D3PM_MEMBER { get_tilted(to, j, count); });
    }
    V tops = splat<Real>(-INFINITY);
    this->each_vector([&](int64_t j, int64_t count) D3PM_MEMBER {
      V l;
      get_logits(l, j, count);
      tops = l > tops ? l : tops;
    });
    return max_lanes<Real>(tops);
  }

  template <class Get>
  D3PM_MEMBER double largest_of(const Get& get) const {
    Wide tops = Wide{} - INFINITY;
    this->each_vector([&](int64_t j, int64_t count) D3PM_MEMBER {
      Wide values;
      get(values, j, count);
      tops = values > tops ? values : tops;
    });
    double top = tops[0];
    for (int i = 1; i < kWidth; ++i) top = std::max(top, tops[i]);
    return top;
  }

  D3PM_MEMBER void get_logits(V& to, int64_t j, int64_t count) const {
    to = count == kWidth ? read(logits_ + j) : read_some(logits_ + j, count, Real(-INFINITY));
  }

  D3PM_MEMBER void get_wide(Wide& to, Wide& tilt, int64_t j, int64_t count) const {
    V logits;
    get_logits(logits, j, count);
    to = __builtin_convertvector(logits, Wide);
    double lanes[kWidth] = {};
    std::copy_n(tilt_ + j, count, lanes);
    tilt = load<Wide>(lanes);
  }

  // In double, and without the level of the classes that lead to x_t: where another has the
  // largest logit, theirs have no digits to spare.
  D3PM_MEMBER void get_tilted(Wide& to, int64_t j, int64_t count) const {
    Wide tilt;
    get_wide(to, tilt, j, count);
    to = to - level_ + tilt;
  }

  D3PM_MEMBER void get_below(V& to, double top, int64_t j, int64_t count) const {
    if (!tilt_) {
      get_logits(to, j, count);
      to -= splat<Real>(top);
      return;
    }
    Wide tilted;
    get_tilted(tilted, j, count);
    to = __builtin_convertvector(tilted - top, V);
  }

  const DensePredict& call_;
  const Element* logits_ = nullptr;
  const double* tilt_ = nullptr;
  double level_ = 0;
  int64_t a_ = 0;
};

template <class Element>
static bool dense(const DensePredict& call, int64_t begin, int64_t end) {
  return dense_rows<DensePredictor, Element>(call, begin, end);
}
