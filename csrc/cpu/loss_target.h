// The loss of a run of tokens and its gradient, for one set of vector instructions.
//
// Tokens are collected in blocks. Along a row of K classes the vectors hold classes; between
// two passes over the rows they hold the block's tokens, so that the scalar mathematics of a
// token (LossRow) costs a fraction of a vector instruction each.

#include "../loss_row.h"
#include "row.h"

template <class Element, bool kGrad>
class LossBlock {
  using Real = typename Memory<Element>::Real;
  using V = typename VectorOf<Real>::Type;
  using M = Math<Real>;
  static constexpr unsigned kWidth = kLanes<Real>;
  static constexpr unsigned kCapacity = 16;
  static constexpr unsigned kGroups = (kCapacity + kWidth - 1) / kWidth;
  using Row = LossRow<M>;

 public:
  LossBlock(const Loss& call)
      : call_(call),
        classes_(call.chain.num_classes),
        row_(call.chain),
        padded_((classes_ + 2 * kWidth - 1) / (2 * kWidth) * (2 * kWidth)),
        vector_(call.chain.template vector<Real>()),
        uniform_(static_cast<Real>(vector_.uniform)),
        step_of_(call.chain),
        capacity_(std::max<int64_t>(1, std::min<int64_t>(kCapacity, 4096 / padded_))),
        scratch_(2 * capacity_ * padded_) {
    std::memset(static_cast<void*>(rows_), 0, sizeof(rows_));
  }

  // Takes in one token, or settles it at once where its row need not be read.
  bool add(int64_t token) {
    const Chain& chain = call_.chain;
    if (call_.mask && !call_.mask[token]) return settle(token, 0), false;
    const int64_t x0 = call_.x0[token], x_t = call_.x_t[token];
    const StepCoefficients* step = step_of_(token);
    if (!step || !chain.is_class(x0) || !chain.is_class(x_t)) return settle(token, NAN), true;

    const bool same = x0 == x_t;
    const double u = vector_(step->base, step->mask, x_t);
    const double bar_x0 = vector_(step->bar_base, step->bar_mask, x0);
    const double bar_xt = vector_(step->bar_base, step->bar_mask, x_t);
    if (u + step->keep * (bar_xt + (same ? step->bar_keep : 0)) == 0)
      return settle(token, NAN), false;  // an impossible pair
    const bool direct = call_.model.predicts_x0(*step);
    const double vb = direct || u == 0 ? 0 : call_.vb_weight;
    const double ce = call_.ce_weight + (direct ? call_.vb_weight : 0);
    if (vb == 0 && ce == 0) return settle(token, 0), false;

    const int64_t mask_id = chain.mask_id;
    const bool apart = mask_id >= 0 && mask_id != x0 && mask_id != x_t;
    const bool tilted = call_.model.posterior_mean && !direct;
    const unsigned i = size_++;
    token_[i] = token;
    mask_[i] = apart ? mask_id : -1;
    curved_[i] = vb != 0 && step->bar_base > M::tiny;
    set(i, &Row::keep, step->keep);
    set(i, &Row::spread, u);
    set(i, &Row::bar_keep, step->bar_keep);
    set(i, &Row::bar_base, step->bar_base);
    set(i, &Row::bar_x0, bar_x0);
    set(i, &Row::bar_xt, bar_xt);
    set(i, &Row::bar_mask, apart ? vector_(step->bar_base, step->bar_mask, mask_id) : 0);
    set(i, &Row::same, same);
    set(i, &Row::tilt, tilted ? posterior_mean_tilt(step->keep, u, step->bar_keep, bar_xt) : 1.0);
    set(i, &Row::vb, vb);
    set(i, &Row::ce, ce);
    if (size_ == capacity_) flush();
    return false;
  }

  void flush() {
    for (unsigned i = 0; i < size_; ++i) exponentials(i);
    for (unsigned g = 0; g * kWidth < size_; ++g) rows_[g].solve();
    for (unsigned i = 0; i < size_; ++i)
      if (curved_[i]) curvature(i);
    for (unsigned g = 0; g * kWidth < size_; ++g) rows_[g].finish();
    Real* loss = static_cast<Real*>(call_.loss);
    for (unsigned i = 0; i < size_; ++i) {
      loss[token_[i]] = get(i, &Row::loss);
      if (kGrad) gradient(i);
    }
    size_ = 0;
  }

 private:
  Real get(unsigned i, V Row::* field) const { return (rows_[i / kWidth].*field)[i % kWidth]; }

  template <class Scalar>
  void set(unsigned i, V Row::* field, Scalar value) {
    (rows_[i / kWidth].*field)[i % kWidth] = static_cast<Real>(value);
  }

  Real* exps(unsigned i) const { return scratch_.data() + 2 * i * padded_; }
  Real* slants(unsigned i) const { return exps(i) + padded_; }
  int64_t x0(unsigned i) const { return call_.x0[token_[i]]; }
  int64_t x_t(unsigned i) const { return call_.x_t[token_[i]]; }

  void settle(int64_t token, Real value) {
    static_cast<Real*>(call_.loss)[token] = value;
    if (kGrad)
      row_.write(static_cast<Element*>(call_.grad) + token * classes_,
                 [=](int64_t) { return splat<Real>(value); });
  }

  D3PM_MEMBER void exponentials(unsigned i) {
    const Element* logits = static_cast<const Element*>(call_.logits) + token_[i] * classes_;
    Real* e = exps(i);
    const Special special(*this, i);
    const auto rest = [&](int64_t j, const V& v) { return special(j) ? V{} : v; };
    const auto found = row_.exponentials(logits, token_[i], e, rest);
    set(i, &Row::e_rest, found.sum);
    set(i, &Row::below_top, found.top - read_one(logits + x0(i)));
    set(i, &Row::e_x0, e[x0(i)]);
    set(i, &Row::e_xt, e[x_t(i)]);
    set(i, &Row::e_mask, mask_[i] < 0 ? Real(0) : e[mask_[i]]);
  }

  // The classes of a token that LossRow treats on their own.
  struct Special {
    using Bits = typename VectorOf<Real>::Bits;
    Bits x0, x_t, mask, end;

    Special(const LossBlock& block, unsigned i)
        : x0(at(block.x0(i))),
          x_t(at(block.x_t(i))),
          mask(at(block.mask_[i])),
          end(at(block.classes_)) {}

    // Which of the classes from j on are special, or no class at all.
    Bits operator()(int64_t j) const {
      const Bits here = at(j) + iota<Real>();
      return (here == x0) | (here == x_t) | (here == mask) | (here >= end);
    }

    static Bits at(int64_t j) { return Bits{} + static_cast<typename VectorOf<Real>::Int>(j); }
  };

  // Sums of pi phi(g) and pi h over the classes that are not special. All others are given
  // g = 0 and so add nothing.
  D3PM_MEMBER void curvature(unsigned i) {
    const Real slope = get(i, &Row::slope), shift = get(i, &Row::shift);
    const Real ratio = get(i, &Row::ratio);
    const V one = splat<Real>(1);
    const Special special(*this, i);
    const Real* e = exps(i);
    Real* h = slants(i);
    double sum_phi = 0, sum_h = 0;
    for (int64_t begin = 0; begin < padded_; begin += kStretch) {
      const int64_t end = std::min<int64_t>(padded_, begin + kStretch);
      V phis = {}, hs = {};
      if (vector_.pi) {
        for (int64_t j = begin; j < std::min(end, row_.padded); j += kWidth) {
          const V p = j + kWidth <= classes_ ? load<V>(vector_.pi + j)
                                             : read_some(vector_.pi + j, classes_ - j, Real(0));
          const auto apart = special(j);
          const auto reachable = p > Real(0);
          const V rise = apart ? V{} : slope * load<V>(e + j);
          const V lift = rise / p;
          const V y = apart ? one : ratio + lift, g = apart ? V{} : shift + lift;
          const V slant = reachable ? g / y : one;
          phis += reachable ? p * M::phi(g, y) : rise;
          hs += p * slant;
          store(h + j, slant);
        }
      } else {
        const Real steep = slope * static_cast<Real>(classes_);
        const bool paired = ratio + steep < M::pair_limit;
        for (int64_t j = begin; j < end; j += 2 * kWidth) {
          const int64_t k = j + kWidth;
          const auto apart_j = special(j), apart_k = special(k);
          const V lift_j = steep * load<V>(e + j), lift_k = steep * load<V>(e + k);
          const V y_j = apart_j ? one : ratio + lift_j, g_j = apart_j ? V{} : shift + lift_j;
          const V y_k = apart_k ? one : ratio + lift_k, g_k = apart_k ? V{} : shift + lift_k;
          phis += paired ? M::phi_pair(g_j, y_j, g_k, y_k) : M::phi(g_j, y_j) + M::phi(g_k, y_k);
          if (!kGrad) continue;
          const V slant_j = g_j / y_j, slant_k = g_k / y_k;
          hs += slant_j + slant_k;
          store(h + j, slant_j);
          store(h + k, slant_k);
        }
        phis *= uniform_;
        hs *= uniform_;
      }
      sum_phi += sum_lanes<Real>(phis);
      sum_h += sum_lanes<Real>(hs);
    }
    set(i, &Row::sum_phi, sum_phi);
    set(i, &Row::sum_h, sum_h);
  }

  D3PM_MEMBER void gradient(unsigned i) {
    const Real scale = static_cast<Real>(call_.grad_scale);
    const Real steep = get(i, &Row::steep) * scale, flat = get(i, &Row::flat) * scale;
    const Real* e = exps(i);
    const Real* h = slants(i);
    Element* grad = static_cast<Element*>(call_.grad) + token_[i] * classes_;
    if (curved_[i]) {
      row_.write(grad, [&](int64_t j) { return load<V>(e + j) * (steep * load<V>(h + j) + flat); });
    } else {
      const Real even = steep + flat;
      row_.write(grad, [&](int64_t j) { return load<V>(e + j) * even; });
    }
    if (mask_[i] >= 0) write_one(grad + mask_[i], get(i, &Row::grad_mask) * scale);
    write_one(grad + x_t(i), get(i, &Row::grad_xt) * scale);
    write_one(grad + x0(i), get(i, &Row::grad_x0) * scale);
  }

  const Loss& call_;
  const int64_t classes_;
  const RowReader<Element> row_;
  const int64_t padded_;
  const Vector<Real> vector_;
  const Real uniform_;
  StepCursor step_of_;
  const unsigned capacity_;
  const Scratch<Real> scratch_;
  unsigned size_ = 0;
  int64_t token_[kCapacity], mask_[kCapacity];
  bool curved_[kCapacity];
  Row rows_[kGroups];
};

template <class Element, bool kGrad>
bool loss_of_tokens(const Loss& call, int64_t begin, int64_t end) {
  LossBlock<Element, kGrad> block(call);
  bool bad = false;
  for (int64_t token = begin; token < end; ++token) bad |= block.add(token);
  block.flush();
  return bad;
}

template <class Element>
static bool loss(const Loss& call, int64_t begin, int64_t end) {
  return call.grad ? loss_of_tokens<Element, true>(call, begin, end)
                   : loss_of_tokens<Element, false>(call, begin, end);
}
