// The loss of a run of tokens and its gradient, for one set of vector instructions.
//
// Tokens are collected in blocks: the scalar mathematics of a token (LossRow) is done on vectors
// of tokens and so costs each a fraction of a vector instruction. The passes over the classes
// are the layout's.

#include "loss_layouts.h"

template <class Element, class Layout>
class LossBlock {
  using Real = typename Memory<Element>::Real;
  using V = typename VectorOf<Real>::Type;
  using M = Math<Real>;
  using Tokens = typename Layout::Tokens;
  using Group = typename Tokens::Group;
  using Int = typename Tokens::Int;

 public:
  explicit LossBlock(const Loss& call)
      : call_(call),
        row_(call.chain),
        mask_id_(call.chain.mask_id),
        layout_(call),
        vector_(call.chain.template vector<Real>()),
        step_of_(call.chain),
        blocks_{Tokens(vector_.uniform), Tokens(vector_.uniform)} {}

  // Takes in one token, or settles it at once where its row need not be read.
  bool add(int64_t token) {
    const Chain& chain = call_.chain;
    if (call_.mask && !call_.mask[token]) return settle(token, 0), false;
    const int64_t x0 = call_.x0[token], x_t = call_.x_t[token];
    const StepCoefficients* step = step_of_(token);
    if (!step || !chain.is_class(x0) || !chain.is_class(x_t)) return settle(token, NAN), true;
    if (step != step_.step) step_ = LossStep<Real>(call_, *step);
    const LossToken<Real> of(step_, vector_, call_.model.posterior_mean, x0, x_t);
    if (of.settled) return settle(token, of.value), false;

    Tokens& tokens = *filling_;
    const unsigned i = tokens.size++;
    tokens.token[i] = token;
    tokens.x0[i] = static_cast<Int>(x0);
    tokens.x_t[i] = static_cast<Int>(x_t);
    tokens.set(i, &Group::keep, step_.keep);
    tokens.set(i, &Group::base, step_.base);
    tokens.set(i, &Group::to_mask, step_.to_mask);
    tokens.set(i, &Group::bar_keep, step_.bar_keep);
    tokens.set(i, &Group::bar_base, step_.bar_base);
    tokens.set(i, &Group::bar_to_mask, step_.bar_to_mask);
    tokens.set(i, &Group::vb, of.vb);
    tokens.set(i, &Group::ce, step_.ce);
    if (vector_.pi) {
      tokens.set(i, &Group::pi_x0, vector_.pi[x0]);
      tokens.set(i, &Group::pi_xt, vector_.pi[x_t]);
    }
    tokens.set(i, &Group::tilt, of.tilt);
    if (tokens.size == layout_.capacity) {
      compute(*ready_, *filling_);
      std::swap(ready_, filling_);
    }
    return false;
  }

  void flush() {
    compute(*ready_, *filling_);
    compute(*filling_, *ready_);
  }

 private:
  void compute(Tokens& tokens, const Tokens& next) {
    if (tokens.size == 0) return;
    layout_.fetch(tokens);
    look_up(tokens);
    set_special_apart(tokens);
    layout_.exponentials(tokens, next);
    for (unsigned g = 0; g < tokens.num_groups(); ++g) {
      Group& group = tokens.groups[g];
      group.read(group.top, group.logit_x0, group.logit_xt, group.logit_mask);
      group.solve();
    }
    put_special(tokens, [](unsigned) { return Special{-Real(0), -Real(0), -Real(0)}; });
    layout_.curvature(tokens, next);
    for (unsigned g = 0; g < tokens.num_groups(); ++g) tokens.groups[g].finish();

    Real* loss = static_cast<Real*>(call_.loss);
    for (unsigned i = 0; i < tokens.size; ++i) loss[tokens.token[i]] = tokens.get(i, &Group::loss);
    if (call_.grad) write_gradient(tokens);
    tokens.size = 0;
  }

  // Something for each of the classes of a token that LossRow treats on their own.
  struct Special {
    Real x0, x_t, mask;
  };

  void look_up(Tokens& tokens) const {
    const Int mask = static_cast<Int>(mask_id_);
    const Real pi_mask = static_cast<Real>(mask < 0 ? 0 : vector_(1, 0, mask));
    for (unsigned g = 0; g < tokens.num_groups(); ++g) {
      const auto x0 = load<typename M::Bits>(tokens.x0 + g * kLanes<Real>);
      const auto x_t = load<typename M::Bits>(tokens.x_t + g * kLanes<Real>);
      Group& group = tokens.groups[g];
      group.look_up(x0, x_t, mask, group.pi_x0, group.pi_xt, splat<Real>(pi_mask), group.base,
                    group.to_mask, group.bar_to_mask);
    }
  }

  template <class Value>
  D3PM_MEMBER void put_special(Tokens& tokens, const Value& value) {
    for (unsigned i = 0; i < tokens.size; ++i) {
      const Special special = value(i);
      if (mask_id_ >= 0) *layout_.at(tokens, i, mask_id_) = special.mask;
      *layout_.at(tokens, i, tokens.x_t[i]) = special.x_t;
      *layout_.at(tokens, i, tokens.x0[i]) = special.x0;
    }
  }

  void set_special_apart(Tokens& tokens) {
    const Real never = -INFINITY;
    for (unsigned i = 0; i < tokens.size; ++i) {
      tokens.set(i, &Group::logit_x0, *layout_.at(tokens, i, tokens.x0[i]));
      tokens.set(i, &Group::logit_xt, *layout_.at(tokens, i, tokens.x_t[i]));
      const bool apart = mask_id_ >= 0 && mask_id_ != tokens.x0[i] && mask_id_ != tokens.x_t[i];
      tokens.set(i, &Group::logit_mask, apart ? *layout_.at(tokens, i, mask_id_) : never);
    }
    put_special(tokens, [=](unsigned) { return Special{never, never, never}; });
  }

  void settle(int64_t token, Real value) {
    static_cast<Real*>(call_.loss)[token] = value;
    if (call_.grad)
      row_.write(static_cast<Element*>(call_.grad) + token * row_.classes,
                 [=](int64_t) { return splat<Real>(value); });
  }

  void write_gradient(Tokens& tokens) {
    layout_.gradient(tokens, call_.grad_scale);
    const Real scale = static_cast<Real>(call_.grad_scale);
    put_special(tokens, [&](unsigned i) {
      return Special{tokens.get(i, &Group::grad_x0) * scale, tokens.get(i, &Group::grad_xt) * scale,
                     tokens.get(i, &Group::grad_mask) * scale};
    });
    layout_.write(tokens);
  }

  const Loss& call_;
  const RowReader<Element> row_;
  const int64_t mask_id_;
  Layout layout_;
  const Vector<Real> vector_;
  StepCursor step_of_;
  LossStep<Real> step_;
  Tokens blocks_[2];
  Tokens *filling_ = blocks_, *ready_ = blocks_ + 1;
};

template <class Element, class Layout>
bool loss_of_tokens(const Loss& call, int64_t begin, int64_t end) {
  LossBlock<Element, Layout> block(call);
  bool bad = false;
  for (int64_t token = begin; token < end; ++token) bad |= block.add(token);
  block.flush();
  return bad;
}

template <class Element, bool kGrad>
bool loss_in_best_layout(const Loss& call, int64_t begin, int64_t end) {
  using Narrow = Across<Element, kGrad>;
  return call.chain.num_classes <= Narrow::kMostClasses
             ? loss_of_tokens<Element, Narrow>(call, begin, end)
             : loss_of_tokens<Element, RowByRow<Element, kGrad>>(call, begin, end);
}

template <class Element>
static bool loss(const Loss& call, int64_t begin, int64_t end) {
  return call.grad ? loss_in_best_layout<Element, true>(call, begin, end)
                   : loss_in_best_layout<Element, false>(call, begin, end);
}
