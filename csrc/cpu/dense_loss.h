// The divergence of a row, between the products with Qbar_s.

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

    double z = 0, zq = 0, change = 0, scale = 1;
    add_up(span, c, d, f, sums, z, zq, change);
    if (call_.is_density) {
      const auto here = this->predicted(d, this->x_t(n), f + this->x_t(n), sums, 1);
      const double at_zq = here.d[0], at_z = here.f[0];
      scale = std::max(zq / at_zq, z / at_z);
      z = at_z, zq = at_zq, change = here.change[0];
    }
    const V w = splat<Real>(change / zq), ratio = splat<Real>(zq / z), per_z = splat<Real>(1 / z);
    const V per_zq = splat<Real>(1 / zq), one = splat<Real>(1), zero = {};
    const V vb = splat<Real>(call_.vb_weight), tiny = splat<Real>(M::tiny);
    // Where Z is far below Zq, f is far below d, and keeps digits that f - d has lost.
    const bool rises = zq < 2 * z;
    const V per_ratio = splat<Real>(z / zq);
    V sensitivity = {}, moved = {};
    double all_moved = 0;
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
      if (call_.is_density) {
        moved += possible ? reach * h * x.f : zero;
        if (Base::ends_stretch(j)) all_moved += sum_lanes<Real>(std::exchange(moved, V{}));
      }
      return possible ? term : zero;
    });
    if (call_.is_density) put_own(f, this->x_t(n), all_moved + sum_lanes<Real>(moved), z);
    Real* const results = static_cast<Real*>(call_.loss) + rows_.tokens[n] * call_.num_results;
    const double factor = this->factor(n);
    results[0] += this->weighted(call_.vb_weight * factor, divergence);
    if (call_.num_results > 1) results[1] = this->weighted(factor, divergence);
    const double bound = call_.error * static_cast<double>(sum_lanes<Real>(sensitivity));
    const bool is_sure = zq > kLeastReach && z > 0 && std::abs(divergence) < INFINITY &&
                         bound <= scale * static_cast<double>(std::numeric_limits<Real>::epsilon());
    call_.inexact[n] = !is_sure;
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

  // Writes the r of x_t itself.
  void put_own(Work* f, int64_t x_t, double moved, double z) const {
    const double own = -call_.vb_weight * moved / z;
    f[x_t] = std::abs(own) < Base::kLeast ? Work(0) : static_cast<Work>(own);
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

template <class Element>
static bool dense(const DenseLoss& call, int64_t begin, int64_t end) {
  return dense_rows<DenseDivergence, Element>(call, begin, end);
}
