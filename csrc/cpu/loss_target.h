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
    if (step != run_.step) run_ = Run(call_, *step);

    const double u = vector_(step->base, step->mask, x_t);
    if (u == 0 && is_impossible(*step, x0, x_t)) return settle(token, NAN), false;
    const Real vb = u == 0 ? 0 : run_.vb;
    if (vb == 0 && run_.ce == 0) return settle(token, 0), false;

    Tokens& tokens = *filling_;
    const unsigned i = tokens.size++;
    tokens.token[i] = token;
    tokens.x0[i] = static_cast<Int>(x0);
    tokens.x_t[i] = static_cast<Int>(x_t);
    tokens.set(i, &Group::keep, run_.keep);
    tokens.set(i, &Group::base, run_.base);
    tokens.set(i, &Group::to_mask, run_.to_mask);
    tokens.set(i, &Group::bar_keep, run_.bar_keep);
    tokens.set(i, &Group::bar_base, run_.bar_base);
    tokens.set(i, &Group::bar_to_mask, run_.bar_to_mask);
    tokens.set(i, &Group::vb, vb);
    tokens.set(i, &Group::ce, run_.ce);
    if (vector_.pi) {
      tokens.set(i, &Group::pi_x0, vector_.pi[x0]);
      tokens.set(i, &Group::pi_xt, vector_.pi[x_t]);
    }
    if (call_.model.posterior_mean) tokens.set(i, &Group::tilt, tilt(*step, u, x_t));
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
      group.e_x0 = M::exp(group.logit_x0 - group.top);
      group.e_xt = M::exp(group.logit_xt - group.top);
      group.e_mask = M::exp(group.logit_mask - group.top);
      group.below_top = group.top - group.logit_x0;
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

  // What the tokens of one step have in common.
  struct Run {
    const StepCoefficients* step = nullptr;
    bool direct = false;
    Real keep = 0, base = 0, to_mask = 0, bar_keep = 0, bar_base = 0, bar_to_mask = 0;
    Real vb = 0, ce = 0;

    Run() = default;
    Run(const Loss& call, const StepCoefficients& s)
        : step(&s),
          direct(call.model.predicts_x0(s)),
          keep(static_cast<Real>(s.keep)),
          base(static_cast<Real>(s.base)),
          to_mask(static_cast<Real>(s.mask)),
          bar_keep(at_least_normal<Real>(s.bar_keep)),
          bar_base(static_cast<Real>(s.bar_base)),
          bar_to_mask(static_cast<Real>(s.bar_mask)),
          vb(static_cast<Real>(direct ? 0 : call.weights.vb)),
          ce(static_cast<Real>(call.weights.ce + (direct ? call.weights.vb : 0))) {}
  };

  // Whether the chain cannot go from x_0 to x_t, where no other class than x_t leads to x_t.
  bool is_impossible(const StepCoefficients& step, int64_t x0, int64_t x_t) const {
    const double stay = x0 == x_t ? step.bar_keep : 0;
    return step.keep * (vector_(step.bar_base, step.bar_mask, x_t) + stay) == 0;
  }

  double tilt(const StepCoefficients& step, double u, int64_t x_t) const {
    const double bar_xt = vector_(step.bar_base, step.bar_mask, x_t);
    return run_.direct ? 1.0 : posterior_mean_tilt(step.keep, u, step.bar_keep, bar_xt);
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
      tokens.groups[g].look_up(x0, x_t, mask, pi_mask);
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
  Run run_;
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
