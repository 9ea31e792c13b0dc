// Draws x_s ~ p(x_s | x_t) for a run of tokens, for one set of vector instructions:
// p_sample_token.h has the notation. Where u = 0 a token stays without a number.

#include "shaped_row.h"

#include "class_draw.h"
#include "uniforms_cursor.h"

template <class Element>
class RowSampler {
  using Real = typename Memory<Element>::Real;
  using V = typename VectorOf<Real>::Type;
  static constexpr int kWidth = kLanes<Real>;
  static constexpr int64_t kTokens = 64;  // that are looked at before the first row is read

 public:
  RowSampler(const PSample& call, const Shaping& shaping)
      : call_(call),
        row_(call.chain),
        shaped_(row_, call.logits, shaping),
        vector_(call.chain.template vector<double>()),
        step_of_(call.chain),
        uniforms_of_(call.random, call.chain.num_tokens),
        e_(row_.padded),
        draw_(row_.padded, row_.padded) {}

  bool draw(int64_t begin, int64_t end) {
    bool bad = false;
    for (int64_t first = begin, last; first < end; first = last) {
      step_ = step_of_(first);
      last = std::min({end, first + kTokens, step_of_.end()});
      const int count = settle(collect(first, last, bad));
      for (int i = 0; i < count; ++i) {
        const int64_t drawn = call_.out[moving_[i].token] = draw_from_row(moving_[i]);
        bad |= drawn == kNone;
      }
    }
    return bad;
  }

 private:
  // A token that may move.
  struct Moving {
    int64_t token;
    PSampleToken of;
    Uniforms random;
  };

  // Lets all tokens stay that there are, and takes note of those that can be left; returns how
  // many.
  int collect(int64_t begin, int64_t end, bool& bad) {
    const Chain& chain = call_.chain;
    const bool any = step_ && (step_->base > 0 || call_.model.predicts_x0(*step_));
    int count = 0;
    for (int64_t token = begin; token < end; ++token) {
      const int64_t x_t = call_.x_t[token];
      const bool good = step_ && chain.is_class(x_t);
      call_.out[token] = good ? x_t : kNone;
      bad |= !good;
      moving_[count].token = token;
      count += good & (any | (x_t == chain.mask_id));  // no branch: it would be a guess
    }
    return count;
  }

  // Keeps those whose rows have to be read, and returns how many.
  int settle(int collected) {
    int count = 0;
    for (int i = 0; i < collected; ++i) {
      const int64_t token = moving_[i].token;
      const PSampleToken of(*step_, vector_, call_.model.predicts_x0(*step_), call_.x_t[token]);
      const Moving moving{token, of, uniforms_of_(token)};
      if (of.stays(moving.random.choice)) continue;
      prefetch_row(token);
      moving_[count++] = moving;
    }
    return count;
  }

  int64_t draw_from_row(const Moving& moving) {
    const auto& [token, of, random] = moving;
    if (!read_row(token)) return kNone;
    Real& mass_xt = e_.data()[of.x_t];
    if (call_.model.posterior_mean) mass_xt *= static_cast<Real>(of.tilt(true));
    const double total = draw_.sum(e_.data(), 0);
    const auto of_model = [&] { return draw_.of_tile(e_.data(), 0, random.draw * total); };
    return of.draw(call_, random, mass_xt, total, of_model);
  }

  // Has the row's first page on its way into the cache; the processor itself reads on from there.
  void prefetch_row(int64_t token) const {
    const int64_t size = row_.classes * static_cast<int64_t>(sizeof(Element));
    const char* row = static_cast<const char*>(call_.logits) + token * size;
    for (int64_t at = 0; at < std::min<int64_t>(size, 4096); at += 64)
      __builtin_prefetch(row + at, 0, 2);
  }

  // Returns whether the row has a softmax: the sum is NaN where a logit is, or inf, or all are
  // -inf.
  bool read_row(int64_t token) {
    const Real top = shaped_.make(token, e_.data());
    return sum_lanes<Real>(exponentiate(e_.data(), row_.padded / kWidth, splat<Real>(top))) > 0;
  }

  const PSample& call_;
  const RowReader<Element> row_;
  const ShapedRow<Element> shaped_;
  const Vector<double> vector_;
  StepCursor step_of_;
  const StepCoefficients* step_ = nullptr;
  UniformsCursor uniforms_of_;
  const Scratch<Real> e_;
  const ClassDraw<Real> draw_;
  Moving moving_[kTokens];
};

template <class Element>
static bool p_sample(const PSample& call, const Shaping& shaping, int64_t begin, int64_t end) {
  return RowSampler<Element>(call, shaping).draw(begin, end);
}
