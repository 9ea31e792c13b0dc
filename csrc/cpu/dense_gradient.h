// The gradient of a row of logits, after the last product with Qbar_s.

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
    const double factor = call_.scale * this->factor(n);
    double mean = 0;
    if (g && rows_.centred)  // v / sum has s_a - 1 at a
      mean = this->work_sum(v, g) * static_cast<double>(inverse) + static_cast<double>(g[a]);
    V share = {};
    if (call_.ce_weight != 0) {
      row_.exponentials(this->template at<Element>(call_.logits, token), token, e_.data());
      const double sum = row_.sum_of([&](int64_t j) { return load<V>(e_.data() + j); });
      share = splat<Real>(call_.ce_weight * factor / sum);
    }
    const V scale = splat<Real>(factor * static_cast<double>(inverse)), zero = {};
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

template <class Element>
static bool dense(const DenseGradient& call, int64_t begin, int64_t end) {
  return dense_rows<DenseGradientRow, Element>(call, begin, end);
}
