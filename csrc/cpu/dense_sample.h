// A draw of p(x_s | x_t) from a row.

template <class Element, class Work>
class DenseDraw : DenseRow<Element, Work> {
  using Base = DenseRow<Element, Work>;
  using Base::row_;
  using Base::rows_;
  using typename Base::Real;
  using typename Base::V;

 public:
  explicit DenseDraw(const DenseSample& call) : Base(call.rows), call_(call), p_(row_.padded) {}

  bool operator()(int64_t n) {
    const int64_t token = rows_.tokens[n];
    const Work* f = this->template at<Work>(call_.f, n);
    double total = 0, column = 0;
    if (call_.columns) {
      const Real* c = this->template at<Real>(call_.columns, this->column(n));
      const Work* d = this->q_bar_row(call_.q_bar, n);
      const V zero = {};
      total = this->sum_of([&](int64_t j, int64_t count) D3PM_MEMBER {
        const V weight =
            this->get(c + j, count) * this->predicted(d, j, f + j, this->sums(n), count).f;
        store(p_.data() + j, weight > zero ? weight : zero);
        return weight > zero ? weight : zero;
      });
      column = this->sum_of([&](int64_t j, int64_t count) { return this->get(c + j, count); });
    } else {
      const V inverse = splat<Real>(this->sums(n)[2]);
      this->each_vector([&](int64_t j, int64_t count) D3PM_MEMBER {
        store(p_.data() + j, this->get_narrow(f + j, count) * inverse);
      });
      p_.data()[this->anchor(n)] = this->sums(n)[0];
      total = row_.sum_of([&](int64_t j) { return load<V>(p_.data() + j); });
    }
    const bool is_sure =
        call_.error * column <= static_cast<double>(std::numeric_limits<Real>::epsilon()) * total &&
        total > 0;
    call_.inexact[n] = !is_sure;
    if (is_sure)
      call_.out[token] = draw(token_uniforms(call_.random, rows_.num_tokens, token).draw);
    return !is_sure;
  }

 private:
  // In double, so that a class of probability 1e-9 keeps its share beside one of 1; where
  // rounding leaves no class, the last one that has any mass.
  int64_t draw(double uniform) const {
    double total = 0, sum = 0;
    for (int64_t j = 0; j < row_.classes; ++j) total += p_.data()[j];
    int64_t last = 0;
    for (int64_t j = 0; j < row_.classes; ++j) {
      if (p_.data()[j] > 0) last = j;
      sum += p_.data()[j];
      if (sum > uniform * total) break;
    }
    return last;
  }

  const DenseSample& call_;
  const Scratch<Real> p_;
};

template <class Element>
static bool dense(const DenseSample& call, int64_t begin, int64_t end) {
  return dense_rows<DenseDraw, Element>(call, begin, end);
}
