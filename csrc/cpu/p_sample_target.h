// Draws x_s ~ p(x_s | x_t) for a run of tokens, for one set of vector instructions.
//
// With u = u[x_t], p(j) Z = u A s_j + u ub_j + a f[x_t] [j = x_t]: one number chooses among the
// model (mass u A), pi (u W), the mask (u M) and staying; the other draws the class. Since
// Z >= u + a ub[x_t], most tokens are seen to stay before their row is read.

#include "row.h"

template <class Element>
class RowSampler {
  using Real = typename Memory<Element>::Real;
  using V = typename VectorOf<Real>::Type;
  using Wide = typename VectorOf<Real>::Wide;
  static constexpr int kWidth = kLanes<Real>;
  static constexpr int kSpan = 64;  // classes between two entries of the running sum

 public:
  explicit RowSampler(const PSample& call)
      : call_(call),
        row_(call.chain),
        vector_(call.chain.template vector<double>()),
        step_of_(call.chain),
        e_(row_.padded),
        running_(row_.padded / kSpan + 1) {}

  bool draw(int64_t token) {
    const Chain& chain = call_.chain;
    const int64_t x_t = call_.x_t[token];
    int64_t& out = call_.out[token];
    out = x_t;
    const StepCoefficients* step = step_of_(token);
    if (!step || !chain.is_class(x_t)) return true;

    const double u = vector_(step->base, step->mask, x_t);
    const double bar_xt = vector_(step->bar_base, step->bar_mask, x_t);
    const Uniforms random = token_uniforms(call_.random, chain.num_tokens, token);
    const bool direct = call_.model.predicts_x0(*step);
    const double model = u * step->bar_keep;
    if (!direct) {
      const double least = random.choice * (u + step->keep * bar_xt);
      if (least >= model + u * step->bar_base + u * step->bar_mask) return false;
      if (least >= model && step->bar_base == 0 && x_t == chain.mask_id) return false;
    }

    read_row(token);
    if (!direct && call_.model.posterior_mean)
      e_.data()[x_t] *=
          static_cast<Real>(posterior_mean_tilt(step->keep, u, step->bar_keep, bar_xt));
    const double total = running_sums();
    const double here = step->bar_keep * e_.data()[x_t] / total + bar_xt;
    const double threshold = random.choice * (u + step->keep * here);
    const double base = model + u * step->bar_base;
    if (direct || threshold < model)
      out = draw_class(random.draw * total);
    else if (threshold < base)
      out = draw_base(random.draw, call_.cdf, chain.num_classes);
    else if (chain.mask_id >= 0 && threshold < base + u * step->bar_mask)
      out = chain.mask_id;
    return false;
  }

 private:
  void read_row(int64_t token) {
    row_.exponentials(static_cast<const Element*>(call_.logits) + token * row_.classes, token,
                      e_.data());
  }

  // In double, so that a class of probability 1e-9 keeps its share beside one of 1.
  double running_sums() {
    double total = 0;
    for (int64_t begin = 0; begin < row_.padded; begin += kSpan) {
      Wide sum = {};
      const int64_t end = std::min<int64_t>(row_.padded, begin + kSpan);
      for (int64_t j = begin; j < end; j += kWidth)
        sum += __builtin_convertvector(load<V>(e_.data() + j), Wide);
      for (int i = 0; i < kWidth; ++i) total += sum[i];
      running_.data()[begin / kSpan] = total;
    }
    return total;
  }

  // The first class whose running sum passes `target`; where rounding leaves none, the last
  // one that has any mass.
  int64_t draw_class(double target) const {
    const double* ends = running_.data();
    const int64_t spans = (row_.padded + kSpan - 1) / kSpan;
    const int64_t found = std::upper_bound(ends, ends + spans, target) - ends;
    const int64_t span = std::min(found, spans - 1);
    double sum = span == 0 ? 0 : ends[span - 1];
    int64_t last = -1;
    for (int64_t j = span * kSpan; j < row_.classes; ++j) {
      const double e = e_.data()[j];
      if (e > 0) last = j;
      sum += e;
      if (sum > target && last >= 0) break;
    }
    for (int64_t j = row_.classes; last < 0 && j-- > 0;)
      if (e_.data()[j] > 0) last = j;
    return std::max<int64_t>(last, 0);
  }

  const PSample& call_;
  const RowReader<Element> row_;
  const Vector<double> vector_;
  StepCursor step_of_;
  const Scratch<Real> e_;
  const Scratch<double> running_;
};

template <class Element>
static bool p_sample(const PSample& call, int64_t begin, int64_t end) {
  RowSampler<Element> sampler(call);
  bool bad = false;
  for (int64_t token = begin; token < end; ++token) bad |= sampler.draw(token);
  return bad;
}
