// log p and log q of a row.

template <class Element, class Work>
class DenseLogP : DenseRow<Element, Work> {
  using Base = DenseRow<Element, Work>;
  using Base::row_;
  using Base::rows_;
  using typename Base::M;
  using typename Base::Real;
  using typename Base::V;

 public:
  explicit DenseLogP(const DensePosterior& call) : Base(call.rows), call_(call) {}

  bool operator()(int64_t n) {
    const int64_t token = rows_.tokens[n];
    const Real* c = this->template at<Real>(call_.columns, this->column(n));
    const double* log_c = this->template at<double>(call_.log_columns, this->column(n));
    const Work* d = this->q_bar_row(call_.q_bar, n);
    Work* f = this->template at<Work>(call_.f, n);
    const Real* sums = this->sums(n);
    const double least = call_.error / static_cast<double>(std::numeric_limits<Real>::epsilon());
    bool is_sure = true;
    const double z = this->sum_of([&](int64_t j, int64_t count) D3PM_MEMBER {
      const V fj = this->predicted(d, j, f + j, sums, count).f;
      for (int64_t i = 0; i < count; ++i)
        is_sure &= log_c[j + i] == -INFINITY || static_cast<double>(fj[i]) > least;
      return this->get(c + j, count) * fj;
    });
    call_.inexact[n] = !is_sure || !(z > least);
    if (call_.inexact[n]) return true;
    if (call_.upstream)
      turn(this->template at<Element>(call_.upstream, token), log_c, c, d, f, sums, z);
    else
      write(this->template at<Element>(call_.out, token), log_c, d, f, sums, std::log(z));
    return false;
  }

 private:
  void write(Element* out, const double* log_c, const Work* d, const Work* f, const Real* sums,
             double log_z) const {
    this->each_vector([&](int64_t j, int64_t count) D3PM_MEMBER {
      V log_p = M::log(this->predicted(d, j, f + j, sums, count).f);
      for (int64_t i = 0; i < count; ++i)
        log_p[i] = log_c[j + i] == -INFINITY
                       ? -INFINITY
                       : static_cast<Real>(static_cast<double>(log_p[i]) + log_c[j + i] - log_z);
      this->put(out + j, log_p, count);
    });
  }

  void turn(const Element* upstream, const double* log_c, const Real* c, const Work* d, Work* f,
            const Real* sums, double z) const {
    const V zero = {};
    const auto pull = [&](int64_t j, int64_t count) D3PM_MEMBER {
      V u = read_some(upstream + j, count, Real(0));
      for (int64_t i = 0; i < count; ++i)
        if (log_c[j + i] == -INFINITY) u[i] = 0;
      return u;
    };
    const V common = splat<Real>(this->sum_of(pull) / z);
    this->each_vector([&](int64_t j, int64_t count) D3PM_MEMBER {
      const V u = pull(j, count), fj = this->predicted(d, j, f + j, sums, count).f;
      const V share = u == zero ? zero : u / fj;
      this->put_work(f + j, share - common * this->get(c + j, count), count);
    });
  }

  const DensePosterior& call_;
};

template <class Element, class Work>
class DenseLogQ : DenseRow<Element, Work> {
  using Base = DenseRow<Element, Work>;
  using Base::rows_;
  using typename Base::Real;
  using typename Base::V;

 public:
  explicit DenseLogQ(const DenseQPosterior& call) : Base(call.rows), call_(call) {}

  bool operator()(int64_t n) {
    const int64_t x0 = this->anchor(n);
    const int64_t column = this->column(n), row = rows_.by_row ? n : x0;
    const double* log_c = this->template at<double>(call_.log_columns, column);
    const double* log_d = this->template at<double>(call_.log_rows, row);
    const double log_reach = this->template at<double>(call_.log_reach, column)[x0];
    Element* out = this->template at<Element>(call_.out, rows_.tokens[n]);
    this->each_vector([&](int64_t j, int64_t count) D3PM_MEMBER {
      V log_q = {};
      for (int64_t i = 0; i < count; ++i)
        log_q[i] = static_cast<Real>(log_c[j + i] + log_d[j + i] - log_reach);
      this->put(out + j, log_q, count);
    });
    return false;
  }

 private:
  const DenseQPosterior& call_;
};

template <class Element>
static bool dense(const DensePosterior& call, int64_t begin, int64_t end) {
  return dense_rows<DenseLogP, Element>(call, begin, end);
}

template <class Element>
static bool dense(const DenseQPosterior& call, int64_t begin, int64_t end) {
  return dense_rows<DenseLogQ, Element>(call, begin, end);
}
