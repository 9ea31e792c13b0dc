// What the two layouts share, in which a block of tokens lies in memory for the passes of the loss:
// row by row (loss_row_by_row.h) and, for few classes, across (loss_across.h). Both read the
// logits once and write the gradient once.

#include "loss_passes.h"

// A block's tokens, and a LossRow for every kLanes of them.
template <class Real, unsigned kMost>
struct LossTokens {
  using M = Math<Real>;
  using V = typename M::V;
  using Int = typename VectorOf<Real>::Int;
  struct Group : LossRow<M> {
    V base, to_mask, bar_to_mask, pi_x0, pi_xt;
    V top, logit_x0, logit_xt, logit_mask;
    V num_rest;  // how many classes are not special, of those that the layout has
    // As 1 or 0, is_curved(), and, where all pi are 1 / weight, whether products of 1 + u are in
    // range; of a LossBend, the last as 1 or 0.
    V curved, tame, lift, h_0, takes_logs;

    void set_bend(double weight) {
      const V one = M::splat(1), limit = M::splat(M::product_limit);
      const LossLine<M> line = this->line(M::splat(weight));
      curved = M::select(this->is_curved(), one, V{});
      lift = line.slope / line.ratio;
      h_0 = line.shift / line.ratio;
      tame = M::select((lift < limit) & (h_0 < limit) & (-h_0 < limit), one, V{});
      // phi is convex: if the mean u is 1/4, that of phi(u) is at least 1/40.
      const auto far = lift * this->e_rest > M::splat(0.25) * num_rest;
      takes_logs = M::select(far | (this->shift < M::splat(-0.5)), one, V{});
    }

    LossBend<Real> bend() const { return {lift, h_0, takes_logs > V{}}; }

    // Adds what LossPasses::curvature() leaves out, and divides by the weight.
    void add_line(double weight) {
      const V slope = M::select(bend().takes_logs, this->ratio, this->shift) * lift;
      const V line = num_rest * M::phi(this->shift, this->ratio) + slope * this->e_rest;
      this->sum_phi = (this->sum_phi + line) * M::splat(1 / weight);
    }
  };

  static constexpr unsigned kCapacity = kMost;
  static constexpr unsigned kGroups = (kCapacity + kLanes<Real> - 1) / kLanes<Real>;

  unsigned size = 0;
  int64_t token[kCapacity];
  Int x0[kGroups * kLanes<Real>] = {}, x_t[kGroups * kLanes<Real>] = {};
  Group groups[kGroups];

  explicit LossTokens(double uniform) {
    std::memset(static_cast<void*>(groups), 0, sizeof(groups));
    for (Group& group : groups) group.pi_x0 = group.pi_xt = M::splat(uniform);
  }

  unsigned num_groups() const { return (size + kLanes<Real> - 1) / kLanes<Real>; }

  Real get(unsigned i, V Group::* field) const {
    return (groups[i / kLanes<Real>].*field)[i % kLanes<Real>];
  }

  template <class Scalar>
  void set(unsigned i, V Group::* field, Scalar value) {
    (groups[i / kLanes<Real>].*field)[i % kLanes<Real>] = static_cast<Real>(value);
  }
};

// Where a layout reads its rows and writes their gradients.
template <class Element>
class LossLayout {
 protected:
  using Real = typename Memory<Element>::Real;
  using V = typename VectorOf<Real>::Type;
  using M = Math<Real>;
  using Passes = LossPasses<Real>;
  static constexpr int kWidth = kLanes<Real>;

  explicit LossLayout(const LossStrokes& call)
      : row_(call.of.chain.num_tokens, call.of.num_logits, call.of.chain.forbidden - call.first),
        pi_(call.of.chain.pi ? static_cast<const Real*>(call.of.chain.pi) + call.first : nullptr),
        weight_(pi_ ? 1.0 : static_cast<double>(call.of.chain.num_classes)),
        stride_(call.of.class_stride),
        logits_(static_cast<const Element*>(call.of.logits)),
        grad_(static_cast<Element*>(call.of.grad)) {}

  const Element* logits(int64_t token) const { return logits_ + start(token); }
  Element* grad(int64_t token) const { return grad_ + start(token); }

  const RowReader<Element> row_;
  const Real* const pi_;  // of the shard's classes; null where all are 1 / weight_
  const double weight_;
  const int64_t stride_;  // of the classes of a token

 private:
  int64_t start(int64_t token) const {
    if (stride_ == 1) return token * row_.classes;
    return token / stride_ * stride_ * row_.classes + token % stride_;
  }

  const Element* const logits_;
  Element* const grad_;

 public:
  // Writes one value for the whole gradient of a token, at the latest in flush().
  void fill(int64_t token, Real value) {
    row_.write(grad(token), [=](int64_t) { return splat<Real>(value); });
  }
  void flush() {}
};
