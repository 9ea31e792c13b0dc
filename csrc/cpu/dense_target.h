// What happens to the tokens of a dense chain between the products with Qbar_s, for one set of
// vector instructions; dense_calls.h has the notation.
//
// With c = Q_{s->t}[:, x_t], d = Qbar_s[x_0, :], f = s Qbar_s and D = f - d:
//   q_j = c_j d_j / Zq,  p_j = c_j f_j / Z,  W = Z / Zq - 1 = sum_j q_j D_j / d_j
//   g_j = p_j / q_j - 1 = (D_j - W d_j) Zq / (Z d_j),  h_j = g_j / (1 + g_j) = (D_j - W d_j) / f_j
//   KL(q || p) = sum_j q_j (g_j - log(1 + g_j)), p_j where q_j = 0;  r_j = c_j / Z h_j.
// D keeps its digits where p is close to q: s enters it without s_{x_0}.

#include "row.h"

template <class Element, class Work>
class DenseRow {
 protected:
  using Real = typename Memory<Element>::Real;
  using V = typename VectorOf<Real>::Type;
  using M = Math<Real>;
  static constexpr int kWidth = kLanes<Real>;
  static constexpr double kLeast = sizeof(Real) == 4 ? 0x1p-63 : 0x1p-511;
  static constexpr bool kWide = sizeof(Work) > sizeof(Real);
  using W = std::conditional_t<kWide, typename VectorOf<Real>::Wide, V>;

  explicit DenseRow(const DenseRows& rows) : rows_(rows), row_(rows.num_tokens, rows.num_classes) {}

  // Calls body(j, count) for the vectors that hold the classes of `span`; `count` of their lanes
  // are classes.
  template <class Body>
  D3PM_MEMBER void each_vector(const Span& span, const Body& body) const {
    int64_t j = span.first / kWidth * kWidth;
    for (; j < std::min(row_.whole, span.last); j += kWidth) body(j, static_cast<int64_t>(kWidth));
    if (j < span.last) body(j, row_.classes - j);
  }
  template <class Body>
  D3PM_MEMBER void each_vector(const Body& body) const {
    each_vector(Span{0, row_.classes}, body);
  }

  // The sum of value(j, count), a vector, over the classes.
  template <class Value>
  D3PM_MEMBER double sum_of(const Span& span, const Value& value) const {
    double total = 0;
    V part = {};
    each_vector(span, [&](int64_t j, int64_t count) D3PM_MEMBER {
      part += value(j, count);
      if (!ends_stretch(j)) return;
      total += sum_lanes<Real>(part);
      part = V{};
    });
    return total + sum_lanes<Real>(part);
  }
  template <class Value>
  D3PM_MEMBER double sum_of(const Value& value) const {
    return sum_of(Span{0, row_.classes}, value);
  }

  // Whether so many vectors end at this one that their sum should go on in double.
  static bool ends_stretch(int64_t j) {
    return (j / kWidth) % (kStretch / kWidth) == kStretch / kWidth - 1;
  }

  template <class T>
  const T* at(const void* base, int64_t row) const {
    return static_cast<const T*>(base) + row * row_.classes;
  }
  template <class T>
  T* at(void* base, int64_t row) const {
    return static_cast<T*>(base) + row * row_.classes;
  }

  // Not by value: GCC warns of a return in registers that the baseline lacks.
  D3PM_MEMBER void get_work(W& to, const Work* from, int64_t count) const {
    Work lanes[kWidth] = {};
    for (int64_t i = 0; i < count && count < kWidth; ++i) lanes[i] = from[i];
    __builtin_memcpy(&to, count < kWidth ? lanes : from, sizeof(W));
  }
  // Without what would make products of subnormal numbers, which take a hundred times as long.
  D3PM_MEMBER void put_work(Work* to, const V& v, int64_t count) const {
    const V least = splat<Real>(kLeast);
    const W work = __builtin_convertvector((v < least) & (v > -least) ? V{} : v, W);
    if (count == kWidth) return store(to, work);
    Work lanes[kWidth];
    store(lanes, work);
    for (int64_t i = 0; i < count; ++i) to[i] = lanes[i];
  }
  D3PM_MEMBER V get(const Real* from, int64_t count) const {
    return count == kWidth ? load<V>(from) : read_some(from, count, Real(0));
  }
  D3PM_MEMBER V get_narrow(const Work* from, int64_t count) const {
    W work;
    get_work(work, from, count);
    return __builtin_convertvector(work, V);
  }
  D3PM_MEMBER void put(Element* to, const V& v, int64_t count) const {
    count == kWidth ? write_all(to, v) : write_some(to, v, count);
  }

  // The sum of v, times g where that is not null, to the digits that it is multiplied with: what
  // a sum is off by, times the part of Qbar_s that a centred form drops, would be in every result.
  D3PM_MEMBER double work_sum(const Work* v, const Work* g) const {
    W parts = {};
    double sum = 0;
    each_vector([&](int64_t j, int64_t count) D3PM_MEMBER {
      W part, factor;
      get_work(part, v + j, count);
      if (g) {
        get_work(factor, g + j, count);
        part *= factor;
      }
      parts += part;
      if (!ends_stretch(j) && j + kWidth < row_.classes) return;
      for (int i = 0; i < kWidth; ++i) sum += static_cast<double>(parts[i]);
      parts = W{};
    });
    return sum;
  }

  Real* sums(int64_t n) const { return static_cast<Real*>(rows_.sums) + 3 * n; }
  int64_t anchor(int64_t n) const { return rows_.anchor[rows_.tokens[n]]; }
  int64_t x_t(int64_t n) const { return rows_.x_t[rows_.tokens[n]]; }
  // Where the tables have x_t's column, and the anchor's row; null where that is joined.
  int64_t column(int64_t n) const { return rows_.by_row ? n : x_t(n); }
  const Work* q_bar_row(const void* q_bar, int64_t n) const {
    return rows_.joined ? nullptr : at<Work>(q_bar, rows_.by_row ? n : anchor(n));
  }

  // f and f - d of one row.
  struct Predicted {
    V d, f, change;
  };
  D3PM_MEMBER Predicted predicted(const Work* d, int64_t j, const Work* f, const Real* sums,
                                  int64_t count) const {
    W dw, fw;
    get_work(fw, f, count);
    fw *= static_cast<Work>(sums[2]);
    if (rows_.joined) return {V{}, __builtin_convertvector(fw, V), V{}};
    get_work(dw, d + j, count);
    const V dv = __builtin_convertvector(dw, V), fv = __builtin_convertvector(fw, V);
    if (rows_.centred) return {dv, __builtin_convertvector(dw + fw, V), fv};
    return {dv, splat<Real>(sums[0]) * dv + fv, fv - splat<Real>(sums[1]) * dv};
  }

  const DenseRows& rows_;
  const RowReader<Element> row_;
};

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
      Real value = 0;
      if (call_.ce_weight != 0)
        value = static_cast<Real>(call_.ce_weight * (tilt_ ? untilted(v) : e).cross_entropy());
      static_cast<Real*>(call_.loss)[token] = value;
      if (call_.ce_weight != 0 && tilt_) exponentiate(v);
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

template <class Element, class Work>
class DenseDivergence : DenseRow<Element, Work> {
  using Base = DenseRow<Element, Work>;
  using Base::kWidth;
  using Base::rows_;
  using typename Base::M;
  using typename Base::Real;
  using typename Base::V;

 public:
  explicit DenseDivergence(const DenseLoss& call) : Base(call.rows), call_(call) {}

  bool operator()(int64_t n) {
    const Real* c = this->template at<Real>(call_.columns, this->column(n));
    const Work* d = this->q_bar_row(call_.q_bar, n);
    Work* f = this->template at<Work>(call_.f, n);
    const Real* sums = this->sums(n);
    const Span span = call_.spans[this->column(n)];

    double z = 0, zq = 0, change = 0;
    add_up(span, c, d, f, sums, z, zq, change);
    const V w = splat<Real>(change / zq), ratio = splat<Real>(zq / z), per_z = splat<Real>(1 / z);
    const V per_zq = splat<Real>(1 / zq), one = splat<Real>(1), zero = {};
    const V vb = splat<Real>(call_.vb_weight), tiny = splat<Real>(M::tiny);
    // Where Z is far below Zq, f is far below d, and keeps digits that f - d has lost.
    const bool rises = zq < 2 * z;
    const V per_ratio = splat<Real>(z / zq);
    V sensitivity = {};
    clear_outside(f, span);
    const double divergence = this->sum_of(span, [&](int64_t j, int64_t count) D3PM_MEMBER {
      const V cj = this->get(c + j, count);
      const auto x = this->predicted(d, j, f + j, sums, count);
      const auto possible = cj > zero, had = possible & (x.d > tiny);
      const V per_f = one / (possible ? x.f : one), per_d = one / (had ? x.d : one);
      const V reach = cj * per_z, residual = rises ? x.change - w * x.d : x.f - per_ratio * x.d;
      const V h = had ? residual * per_f : one;
      const V g = had ? residual * ratio * per_d : zero;
      const V y = had ? x.f * ratio * per_d : one;
      const V term = cj * (had ? x.d * per_zq * M::phi(g, y) : x.f * per_z);
      const V odds = had ? x.d * per_f : zero;
      sensitivity += possible ? reach + cj * per_zq * (odds < zero ? -odds : odds) : zero;
      this->put_work(f + j, possible ? vb * reach * h : zero, count);
      return possible ? term : zero;
    });
    static_cast<Real*>(call_.loss)[rows_.tokens[n]] +=
        static_cast<Real>(call_.vb_weight * divergence);
    const double bound = call_.error * static_cast<double>(sum_lanes<Real>(sensitivity));
    const bool is_sure = zq > kLeastReach && z > 0 && std::abs(divergence) < INFINITY &&
                         bound <= static_cast<double>(std::numeric_limits<Real>::epsilon());
    call_.doubtful[n] = !is_sure;
    return !is_sure;
  }

 private:
  // Above it, a class that M::tiny counts out has no share in q.
  static constexpr double kLeastReach = sizeof(Real) == 4 ? 1e-12 : 1e-250;

  // Zeroes the vectors that hold no class of the span.
  void clear_outside(Work* f, const Span& span) const {
    std::fill(f, f + span.first / kWidth * kWidth, Work(0));
    const int64_t end = (span.last + kWidth - 1) / kWidth * kWidth;
    if (end < rows_.num_classes) std::fill(f + end, f + rows_.num_classes, Work(0));
  }

  D3PM_MEMBER void add_up(const Span& span, const Real* c, const Work* d, const Work* f,
                          const Real* sums, double& z, double& zq, double& change) const {
    V parts[3] = {};
    const auto flush = [&]() D3PM_MEMBER {
      z += sum_lanes<Real>(parts[0]);
      zq += sum_lanes<Real>(parts[1]);
      change += sum_lanes<Real>(parts[2]);
      for (V& part : parts) part = V{};
    };
    this->each_vector(span, [&](int64_t j, int64_t count) D3PM_MEMBER {
      const V cj = this->get(c + j, count);
      const auto x = this->predicted(d, j, f + j, sums, count);
      parts[0] += cj * x.f;
      parts[1] += cj * x.d;
      parts[2] += cj * x.change;
      if (Base::ends_stretch(j)) flush();
    });
    flush();
  }

  const DenseLoss& call_;
};

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
    call_.doubtful[n] = !is_sure || !(z > least);
    if (call_.doubtful[n]) return true;
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
class DenseGradientRow : DenseRow<Element, Work> {
  using Base = DenseRow<Element, Work>;
  using Base::row_;
  using Base::rows_;
  using typename Base::Real;
  using typename Base::V;

 public:
  explicit DenseGradientRow(const DenseGradient& call)
      : Base(call.rows), call_(call), e_(call.ce_weight == 0 ? 0 : row_.padded) {}

  bool operator()(int64_t n) {
    const int64_t token = rows_.tokens[n], a = this->anchor(n);
    const Work* v = this->template at<Work>(call_.v, n);
    const Work* g = call_.g ? this->template at<Work>(call_.g, n) : nullptr;
    Element* grad = this->template at<Element>(call_.grad, token);
    const Real inverse = this->sums(n)[2];
    double mean = 0;
    if (g && rows_.centred)  // v / sum has s_a - 1 at a
      mean = this->work_sum(v, g) * static_cast<double>(inverse) + static_cast<double>(g[a]);
    V share = {};
    if (call_.ce_weight != 0) {
      row_.exponentials(this->template at<Element>(call_.logits, token), token, e_.data());
      const double sum = row_.sum_of([&](int64_t j) { return load<V>(e_.data() + j); });
      share = splat<Real>(call_.ce_weight * call_.scale / sum);
    }
    const V scale = splat<Real>(call_.scale * static_cast<double>(inverse)), zero = {};
    const double others = this->sum_of([&](int64_t j, int64_t count) D3PM_MEMBER {
      V x = zero;
      if (g) {
        typename Base::W pull;
        this->get_work(pull, g + j, count);
        pull -= static_cast<Work>(mean);
        x = this->get_narrow(v + j, count) * scale * __builtin_convertvector(pull, V);
      }
      if (call_.ce_weight != 0) x += load<V>(e_.data() + j) * share;
      if (a >= j && a < j + count) x[a - j] = 0;
      this->put(grad + j, x, count);
      return x;
    });
    write_one(grad + a, static_cast<Real>(-others));
    return false;
  }

 private:
  const DenseGradient& call_;
  const Scratch<Real> e_;
};

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
    call_.doubtful[n] = !is_sure;
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

template <template <class, class> class Row, class Element, class Call>
static bool dense_rows(const Call& call, int64_t begin, int64_t end) {
  const auto run = [&](auto work) {
    Row<Element, decltype(work)> row(call);
    bool any = false;
    for (int64_t n = begin; n < end; ++n) any |= row(n);
    return any;
  };
  return call.rows.wide ? run(double{}) : run(typename Memory<Element>::Real{});
}

template <class Element>
static bool dense(const DensePredict& call, int64_t begin, int64_t end) {
  return dense_rows<DensePredictor, Element>(call, begin, end);
}
template <class Element>
static bool dense(const DenseLoss& call, int64_t begin, int64_t end) {
  return dense_rows<DenseDivergence, Element>(call, begin, end);
}
template <class Element>
static bool dense(const DensePosterior& call, int64_t begin, int64_t end) {
  return dense_rows<DenseLogP, Element>(call, begin, end);
}
template <class Element>
static bool dense(const DenseGradient& call, int64_t begin, int64_t end) {
  return dense_rows<DenseGradientRow, Element>(call, begin, end);
}
template <class Element>
static bool dense(const DenseSample& call, int64_t begin, int64_t end) {
  return dense_rows<DenseDraw, Element>(call, begin, end);
}
template <class Element>
static bool dense(const DenseQPosterior& call, int64_t begin, int64_t end) {
  return dense_rows<DenseLogQ, Element>(call, begin, end);
}
