// The loss of a run of tokens and its gradient, or one stroke of it, for one set of vector
// instructions.
//
// Tokens are collected in blocks: the scalar mathematics of a token (LossRow) is done on vectors
// of tokens and so costs each a fraction of a vector instruction. The passes over the classes
// are the layout's.

#include "loss_layouts.h"

// What is done with the rows: everything, or one of four parts of it, each of which goes on from
// what the ones before it have written for all shards of a row. kSums leaves alone the rows that
// need no sums.
enum class Stroke { kAll, kStatistics, kSolve, kSums, kGradient };

template <class Element, class Layout, Stroke kStroke>
class LossBlock {
  using Real = typename Memory<Element>::Real;
  using V = typename VectorOf<Real>::Type;
  using M = Math<Real>;
  using Tokens = typename Layout::Tokens;
  using Group = typename Tokens::Group;
  using Int = typename Tokens::Int;

 public:
  explicit LossBlock(const LossStrokes& call)
      : strokes_(call),
        call_(call.of),
        row_(call_.chain.num_tokens, call.of.num_logits),
        mask_(call_.chain.mask_id - call.first),
        layout_(call),
        vector_(call_.chain.template vector<Real>()),
        step_of_(call_.chain),
        blocks_{Tokens(vector_.uniform), Tokens(vector_.uniform)} {}

  // Takes in one token, or settles it at once where its row need not be read.
  bool add(int64_t token) {
    const Chain& chain = call_.chain;
    if (!call_.counts<Real>(token)) return settle(token, 0), false;
    const int64_t x0 = call_.x0[token], x_t = call_.x_t[token];
    const StepCoefficients* step = step_of_(token);
    if (!step || !chain.may_be_data(x0) || !chain.is_class(x_t)) return settle(token, NAN), true;
    if (step != step_.step) step_ = LossStep<Real>(call_, *step);
    const Real weight = call_.weights.of<Real>(token);
    const LossToken<Real> of(step_, vector_, call_.model.posterior_mean, x0, x_t,
                             call_.chain.mask_id, weight);
    if (of.settled || (kStroke == Stroke::kSums && !is_curved(of)))
      return settle(token, of.value), false;

    Tokens& tokens = *filling_;
    const unsigned i = tokens.size++;
    tokens.token[i] = token;
    tokens.x0[i] = static_cast<Int>(x0 - strokes_.first);
    tokens.x_t[i] = static_cast<Int>(x_t - strokes_.first);
    tokens.set(i, &Group::keep, step_.keep);
    tokens.set(i, &Group::base, step_.base);
    tokens.set(i, &Group::to_mask, step_.to_mask);
    tokens.set(i, &Group::bar_keep, step_.bar_keep);
    tokens.set(i, &Group::bar_base, step_.bar_base);
    tokens.set(i, &Group::bar_to_mask, step_.bar_to_mask);
    tokens.set(i, &Group::vb, of.vb);
    tokens.set(i, &Group::ce, of.ce);
    if (call_.with_terms) {
      tokens.set(i, &Group::diverges, of.diverges);
      tokens.set(i, &Group::is_direct, step_.predicts_x0);
    }
    if (vector_.pi) {
      tokens.set(i, &Group::pi_x0, vector_.pi[x0]);
      tokens.set(i, &Group::pi_xt, vector_.pi[x_t]);
    }
    tokens.set(i, &Group::is_tilted, of.is_tilted);
    if (tokens.size == layout_.capacity) {
      compute(*ready_, *filling_);
      std::swap(ready_, filling_);
    }
    return false;
  }

  void flush() {
    compute(*ready_, *filling_);
    compute(*filling_, *ready_);
    layout_.flush();
  }

 private:
  void compute(Tokens& tokens, const Tokens& next) {
    if (tokens.size == 0) return;
    look_up(tokens);
    if constexpr (kStroke == Stroke::kAll) {
      read(tokens, next);
      solve(tokens);
      layout_.curvature(tokens, next);
      finish(tokens);
    } else if constexpr (kStroke == Stroke::kStatistics) {
      read(tokens, next);
      store_fields(tokens, strokes_.statistics, kStatistics);
    } else if constexpr (kStroke == Stroke::kSolve) {
      load_fields(tokens, strokes_.statistics, kStatistics);
      solve(tokens);
      store_line(tokens);
    } else if constexpr (kStroke == Stroke::kSums) {
      read(tokens, next);
      load_fields(tokens, strokes_.line, kLine);
      layout_.curvature(tokens, next);
      store_fields(tokens, strokes_.sums, kSums);
    } else {
      read(tokens, next);
      load_fields(tokens, strokes_.statistics, kStatistics);
      solve(tokens);
      load_fields(tokens, strokes_.sums, kSums);
      finish(tokens);
    }
    tokens.size = 0;
  }

  static constexpr V Group::* kStatistics[] = {&Group::top, &Group::e_rest, &Group::logit_x0,
                                               &Group::logit_xt, &Group::logit_mask};
  static constexpr V Group::* kLine[] = {&Group::ratio, &Group::shift, &Group::slope};
  static constexpr V Group::* kSums[] = {&Group::sum_phi, &Group::sum_h};

  template <size_t kCount>
  void load_fields(Tokens& tokens, const void* from, V Group::* const (&fields)[kCount]) const {
    for (unsigned i = 0; i < tokens.size; ++i)
      for (size_t f = 0; f < kCount; ++f)
        tokens.set(i, fields[f], static_cast<const Real*>(from)[tokens.token[i] * kCount + f]);
  }

  template <size_t kCount>
  void store_fields(const Tokens& tokens, void* to, V Group::* const (&fields)[kCount]) const {
    for (unsigned i = 0; i < tokens.size; ++i)
      for (size_t f = 0; f < kCount; ++f)
        static_cast<Real*>(to)[tokens.token[i] * kCount + f] = tokens.get(i, fields[f]);
  }

  // Leaves the layout with e, and -0 in place of it for the special classes.
  void read(Tokens& tokens, const Tokens& next) {
    layout_.fetch(tokens);
    if constexpr (kStroke == Stroke::kSums || kStroke == Stroke::kGradient)
      load_fields(tokens, strokes_.statistics, kStatistics);
    set_special_apart(tokens);
    layout_.exponentials(tokens, next);
    for (unsigned i = 0; i < tokens.size; ++i) put(places_[i], {-Real(0), -Real(0), -Real(0)});
  }

  void solve(Tokens& tokens) const {
    for (unsigned g = 0; g < tokens.num_groups(); ++g) {
      Group& group = tokens.groups[g];
      group.read(group.top, group.logit_x0, group.logit_xt, group.logit_mask);
      group.solve();
    }
  }

  void store_line(Tokens& tokens) const {
    for (unsigned g = 0; g < tokens.num_groups(); ++g) {
      Group& group = tokens.groups[g];
      const LossLine<M> line = group.line(M::splat(1));
      group.ratio = line.ratio;
      group.shift = line.shift;
      group.slope = line.slope;
    }
    store_fields(tokens, strokes_.line, kLine);
  }

  void finish(Tokens& tokens) {
    const bool has_mask = call_.chain.mask_id >= 0;
    for (unsigned g = 0; g < tokens.num_groups(); ++g) tokens.groups[g].finish(has_mask);
    Real* const loss = static_cast<Real*>(call_.loss);
    const int64_t width = call_.num_results();
    for (unsigned i = 0; i < tokens.size; ++i)
      loss[tokens.token[i] * width] = tokens.get(i, &Group::loss);
    if (call_.with_terms) write_terms(tokens);
    if (call_.grad) write_gradient(tokens);
  }

  void write_terms(Tokens& tokens) const {
    for (unsigned g = 0; g < tokens.num_groups(); ++g)
      tokens.groups[g].divergence = tokens.groups[g].bound();
    for (unsigned i = 0; i < tokens.size; ++i) {
      const int64_t token = tokens.token[i];
      const Real weight = call_.weights.of<Real>(token);
      Real* const terms = static_cast<Real*>(call_.loss) + token * 3 + 1;
      terms[0] = weight * tokens.get(i, &Group::divergence);
      terms[1] = weight * tokens.get(i, &Group::cross_entropy);
    }
  }

  bool is_curved(const LossToken<Real>& of) const {
    return (of.vb != 0 || of.diverges) && step_.bar_base > Real(M::tiny);
  }

  // Something for each of the classes of a token that LossRow treats on their own.
  template <class Value>
  struct Special {
    Value x0, x_t, mask;
  };

  void look_up(Tokens& tokens) const {
    const Int mask = static_cast<Int>(mask_), classes = static_cast<Int>(row_.classes);
    const int64_t mask_id = call_.chain.mask_id;
    const Real pi_mask = static_cast<Real>(mask_id < 0 ? 0 : vector_(1, 0, mask_id));
    for (unsigned g = 0; g < tokens.num_groups(); ++g) {
      const auto x0 = load<typename M::Bits>(tokens.x0 + g * kLanes<Real>);
      const auto x_t = load<typename M::Bits>(tokens.x_t + g * kLanes<Real>);
      Group& group = tokens.groups[g];
      group.look_up(x0, x_t, mask, group.pi_x0, group.pi_xt, splat<Real>(pi_mask), group.base,
                    group.to_mask, group.bar_to_mask, call_.is_density);
      const auto has = [&](const auto& j) D3PM_MEMBER {
        return M::select((j >= 0) & (j < classes), M::splat(1), V{});
      };
      const bool has_mask = mask_ >= 0 && mask_ < row_.classes;
      const V of_xt = M::select(x_t == x0, V{}, has(x_t));
      const V of_mask = M::select((x0 == mask) | (x_t == mask), V{}, M::splat(has_mask));
      group.num_rest = M::splat(static_cast<double>(row_.classes)) - has(x0) - of_xt - of_mask;
    }
  }

  // Where x_0 is another of them, it is x_0 that counts, and else x_t.
  D3PM_MEMBER void put(const Special<Real*>& places, const Special<Real>& values) {
    *places.mask = values.mask;
    *places.x_t = values.x_t;
    *places.x0 = values.x0;
  }

  // Where the layout has a class, or a place that no one reads for one of another shard.
  Real* at(const Tokens& tokens, unsigned i, int64_t j) {
    return j >= 0 && j < row_.classes ? layout_.at(tokens, i, j) : &elsewhere_;
  }

  void set_special_apart(Tokens& tokens) {
    const Real never = -INFINITY;
    elsewhere_ = never;
    for (unsigned i = 0; i < tokens.size; ++i) {
      const int64_t x0 = tokens.x0[i], x_t = tokens.x_t[i];
      const Special<Real*> places{at(tokens, i, x0), at(tokens, i, x_t), at(tokens, i, mask_)};
      places_[i] = places;
      tokens.set(i, &Group::logit_x0, *places.x0);
      tokens.set(i, &Group::logit_xt, *places.x_t);
      const bool apart = mask_ != x0 && mask_ != x_t;
      tokens.set(i, &Group::logit_mask, apart ? *places.mask : never);
      put(places, {never, never, never});
    }
  }

  void settle(int64_t token, Real value) {
    if constexpr (kStroke == Stroke::kStatistics)
      settle(token, strokes_.statistics, {0, 0, -INFINITY, -INFINITY, -INFINITY});
    else if constexpr (kStroke == Stroke::kSolve)
      settle(token, strokes_.line, {1, 1, 0});
    else if constexpr (kStroke == Stroke::kSums)
      settle(token, strokes_.sums, {0, 0});
    else
      settle_loss(token, value);
  }

  static void settle(int64_t token, void* to, std::initializer_list<Real> values) {
    std::copy(values.begin(), values.end(), static_cast<Real*>(to) + token * values.size());
  }

  void settle_loss(int64_t token, Real value) {
    const int64_t width = call_.num_results();
    std::fill_n(static_cast<Real*>(call_.loss) + token * width, width, value);
    if (call_.grad) layout_.fill(token, value);
  }

  void write_gradient(Tokens& tokens) {
    layout_.gradient(tokens, call_.grad_scale);
    const Real scale = static_cast<Real>(call_.grad_scale);
    for (unsigned i = 0; i < tokens.size; ++i)
      put(places_[i],
          {tokens.get(i, &Group::grad_x0) * scale, tokens.get(i, &Group::grad_xt) * scale,
           tokens.get(i, &Group::grad_mask) * scale});
    layout_.write(tokens);
  }

  const LossStrokes& strokes_;
  const Loss& call_;
  const RowReader<Element> row_;  // of the shard, and so are places of classes
  const int64_t mask_;            // negative also where there is none
  Layout layout_;
  const Vector<Real> vector_;
  StepCursor step_of_;
  LossStep<Real> step_;
  Real elsewhere_ = 0;
  Special<Real*> places_[Tokens::kCapacity];
  Tokens blocks_[2];
  Tokens *filling_ = blocks_, *ready_ = blocks_ + 1;
};

template <class Element, class Layout, Stroke kStroke>
bool loss_of_tokens(const LossStrokes& call, int64_t begin, int64_t end) {
  LossBlock<Element, Layout, kStroke> block(call);
  bool bad = false;
  for (int64_t token = begin; token < end; ++token) bad |= block.add(token);
  block.flush();
  return bad;
}
