// Two ways to lay a block of tokens out in memory for the passes of the loss: row by row, where
// the lanes of a vector are classes of one token, and, for few classes, across, where they are
// tokens. Both read the logits once and write the gradient once.

#include "loss_passes.h"

// A block's tokens, and a LossRow for every kLanes of them.
template <class Real, unsigned kCapacity>
struct LossTokens {
  using M = Math<Real>;
  using V = typename M::V;
  using Int = typename VectorOf<Real>::Int;
  struct Group : LossRow<M> {
    V base, to_mask, bar_to_mask, pi_x0, pi_xt;
    V top, logit_x0, logit_xt, logit_mask;
  };

  static constexpr unsigned kGroups = (kCapacity + kLanes<Real> - 1) / kLanes<Real>;

  unsigned size = 0;
  int64_t token[kCapacity];
  Int x0[kGroups * kLanes<Real>] = {}, x_t[kGroups * kLanes<Real>] = {};
  Group groups[kGroups];

  explicit LossTokens(double uniform) {
    std::memset(static_cast<void*>(groups), 0, sizeof(groups));
    for (Group& group : groups) {
      group.tilt = M::splat(1);
      group.pi_x0 = group.pi_xt = M::splat(uniform);
    }
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

// What both layouts share.
template <class Element>
class LossLayout {
 protected:
  using Real = typename Memory<Element>::Real;
  using V = typename VectorOf<Real>::Type;
  using M = Math<Real>;
  using Passes = LossPasses<Real>;
  static constexpr int kWidth = kLanes<Real>;

  explicit LossLayout(const LossStrokes& call)
      : row_(call.of.chain.num_tokens, call.count),
        pi_(call.of.chain.pi ? static_cast<const Real*>(call.of.chain.pi) + call.first : nullptr),
        weight_(pi_ ? 1.0 : static_cast<double>(call.of.chain.num_classes)),
        logits_(static_cast<const Element*>(call.of.logits)),
        grad_(static_cast<Element*>(call.of.grad)) {}

  const Element* logits(int64_t token) const { return logits_ + token * row_.classes; }
  Element* grad(int64_t token) const { return grad_ + token * row_.classes; }

  const RowReader<Element> row_;
  const Real* const pi_;  // of the shard's classes; null where all are 1 / weight_
  const double weight_;

 private:
  const Element* const logits_;
  Element* const grad_;
};

// Row by row, with kSlant for the sums that a gradient needs: full vectors stand in the gradient's
// own row where it has the type of the calculation, the last vector in a place of its own.
template <class Element, bool kGrad, bool kSlant = kGrad>
class RowByRow : LossLayout<Element> {
  using Base = LossLayout<Element>;
  using Base::kWidth;
  using Base::pi_;
  using Base::row_;
  using typename Base::M;
  using typename Base::Passes;
  using typename Base::Real;
  using typename Base::V;
  static constexpr unsigned kMost = 16;
  static constexpr bool kInPlace = kGrad && std::is_same_v<Element, Real>;

 public:
  using Tokens = LossTokens<Real, kMost>;
  const unsigned capacity;

  explicit RowByRow(const LossStrokes& call)
      : Base(call),
        capacity(std::max<int64_t>(1, 4096 / std::max<int64_t>(row_.padded, 4096 / kMost))),
        scratch_(kInPlace ? 0 : capacity * row_.whole),
        last_pi_(pi_ && row_.whole < row_.classes
                     ? read_some(pi_ + row_.whole, row_.classes - row_.whole, Real(0))
                     : V{}) {}

  Real* at(const Tokens& tokens, unsigned i, int64_t j) {
    return j < row_.whole ? full(tokens, i) + j : last_[i] + (j - row_.whole);
  }

  void fetch(Tokens& tokens) {
    for (unsigned i = 0; i < tokens.size; ++i) {
      const int64_t token = tokens.token[i];
      tokens.set(i, &Group::top, row_.copy(this->logits(token), token, full(tokens, i), last_[i]));
    }
  }

  // While a row is worked on, those of a token of `next` are fetched from memory.
  void exponentials(Tokens& tokens, const Tokens& next) {
    for (unsigned i = 0; i < tokens.size; ++i) {
      const V top = splat<Real>(tokens.get(i, &Group::top));
      const Element* ahead = this->logits(row_after(tokens, next, i));
      double sum = 0;
      each_stretch(tokens, i, [&](int64_t j, Real* e, int64_t count) D3PM_MEMBER {
        const V part = exponentiate(e, count, top, Ahead<Element, false>{ahead + j});
        sum += sum_lanes<Real>(part);
      });
      tokens.set(i, &Group::e_rest, sum);
      const auto inside = first_lanes<Real>(row_.classes - row_.whole);
      store(last_[i], inside ? load<V>(last_[i]) : -V{});
    }
  }

  void curvature(Tokens& tokens, const Tokens& next) {
    for (unsigned i = 0; i < tokens.size; ++i) {
      if (!is_curved(tokens, i)) continue;
      const LossLine<M> line = line_of(tokens, i);
      const int64_t after = row_after(tokens, next, i);
      const Element* ahead = kGrad ? this->grad(after) : this->logits(after);
      double phi = 0, h = 0;
      each_stretch(tokens, i, [&](int64_t j, const Real* e, int64_t count) D3PM_MEMBER {
        const Ahead<Element, true> fetch{ahead + j};
        const auto sum = pi_ ? Passes::weighted_curvature(e, count, line, pi(j), fetch)
                             : Passes::template curvature<kSlant>(e, count, line, fetch);
        phi += sum_lanes<Real>(sum.phi);
        h += sum_lanes<Real>(sum.h);
      });
      tokens.set(i, &Group::sum_phi, phi / this->weight_);
      tokens.set(i, &Group::sum_h, h / this->weight_);
    }
  }

  void gradient(Tokens& tokens, double scale) {
    for (unsigned i = 0; i < tokens.size; ++i) {
      const V steep = splat<Real>(tokens.get(i, &Group::steep) * scale);
      const V flat = splat<Real>(tokens.get(i, &Group::flat) * scale);
      const bool curved = is_curved(tokens, i);
      const LossLine<M> line = line_of(tokens, i);
      each_stretch(tokens, i, [&](int64_t j, Real* e, int64_t count) D3PM_MEMBER {
        if (!curved)
          Passes::scale(e, count, steep + flat);
        else if (pi_)
          Passes::weighted_gradient(e, count, line, steep, flat, pi(j));
        else
          Passes::gradient(e, count, line, steep, flat);
      });
    }
  }

  void write(Tokens& tokens) {
    for (unsigned i = 0; i < tokens.size; ++i) {
      Element* to = this->grad(tokens.token[i]);
      if (!kInPlace)
        for (int64_t j = 0; j < row_.whole; j += kWidth)
          write_all(to + j, load<V>(full(tokens, i) + j));
      write_some(to + row_.whole, load<V>(last_[i]), row_.classes - row_.whole);
    }
  }

 private:
  using Group = typename Tokens::Group;

  Real* full(const Tokens& tokens, unsigned i) const {
    if constexpr (kInPlace) return this->grad(tokens.token[i]);
    return scratch_.data() + i * row_.whole;
  }

  static int64_t row_after(const Tokens& tokens, const Tokens& next, unsigned i) {
    return i < next.size ? next.token[i] : tokens.token[i];
  }

  // Calls body(j, e, count) for parts of a row, from class j on, that are short enough to be
  // summed in Real.
  template <class Body>
  D3PM_MEMBER void each_stretch(const Tokens& tokens, unsigned i, const Body& body) {
    Real* e = full(tokens, i);
    for (int64_t j = 0; j < row_.whole; j += kStretch)
      body(j, e + j, std::min(row_.whole - j, kStretch) / kWidth);
    if (row_.whole < row_.classes) body(row_.whole, last_[i], 1);
  }

  // The vectors of pi from class j on.
  auto pi(int64_t j) const {
    return [this, j](int64_t v)
               D3PM_MEMBER { return j < row_.whole ? load<V>(pi_ + j + v * kWidth) : last_pi_; };
  }

  bool is_curved(const Tokens& tokens, unsigned i) const {
    return tokens.groups[i / kWidth].is_curved()[i % kWidth] != 0;
  }

  LossLine<M> line_of(const Tokens& tokens, unsigned i) const {
    return {splat<Real>(tokens.get(i, &Group::ratio)), splat<Real>(tokens.get(i, &Group::shift)),
            splat<Real>(tokens.get(i, &Group::slope) * static_cast<Real>(this->weight_))};
  }

  const Scratch<Real> scratch_;
  const V last_pi_;
  alignas(V) Real last_[kMost][kWidth];
};

// Across: vector j holds class j of as many tokens as it has lanes, so that all sums over
// classes are sums of vectors.
template <class Element, bool kGrad>
class Across : LossLayout<Element> {
  using Base = LossLayout<Element>;
  using Base::kWidth;
  using Base::pi_;
  using Base::row_;
  using typename Base::M;
  using typename Base::Passes;
  using typename Base::Real;
  using typename Base::V;

 public:
  static constexpr int64_t kMostClasses = 200;
  using Tokens = LossTokens<Real, kWidth>;
  const unsigned capacity = kWidth;

  explicit Across(const LossStrokes& call) : Base(call), e_(row_.classes * kWidth) {}

  Real* at(const Tokens&, unsigned i, int64_t j) { return e_.data() + j * kWidth + i; }

  void fetch(Tokens& tokens) {
    V top = splat<Real>(-INFINITY), tile[kWidth];
    each_tile([&](int64_t first, int64_t count) D3PM_MEMBER {
      for (unsigned i = 0; i < kWidth; ++i) {
        const int64_t token = tokens.token[std::min(i, tokens.size - 1)];
        tile[i] = row_.whole ? read(this->logits(token) + first)
                             : row_.tail(this->logits(token), token, -INFINITY);
      }
      transpose<Real>(tile);
      for (int64_t j = 0; j < count; ++j) {
        store(e_.data() + (first + j) * kWidth, tile[j]);
        top = tile[j] > top ? tile[j] : top;
      }
    });
    tokens.groups[0].top = top;
  }

  void exponentials(Tokens& tokens, const Tokens& next) {
    Group& group = tokens.groups[0];
    const Ahead<Element, false> fetch{this->logits(first_row(tokens, next))};
    group.e_rest = exponentiate(e_.data(), row_.classes, group.top, fetch);
  }

  void curvature(Tokens& tokens, const Tokens& next) {
    Group& group = tokens.groups[0];
    if (!is_any_curved(group)) return;
    const auto line = group.line(splat<Real>(this->weight_));
    const int64_t after = first_row(tokens, next);
    const Ahead<Element, true> fetch{kGrad ? this->grad(after) : this->logits(after)};
    const auto sum = pi_ ? Passes::weighted_curvature(e_.data(), row_.classes, line, pi(), fetch)
                         : Passes::template curvature<kGrad>(e_.data(), row_.classes, line, fetch);
    group.sum_phi = sum.phi * splat<Real>(1 / this->weight_);
    group.sum_h = sum.h * splat<Real>(1 / this->weight_);
  }

  void gradient(Tokens& tokens, double scale) {
    const Group& group = tokens.groups[0];
    const V steep = group.steep * splat<Real>(scale), flat = group.flat * splat<Real>(scale);
    const auto line = group.line(splat<Real>(this->weight_));
    if (!is_any_curved(group))
      Passes::scale(e_.data(), row_.classes, steep + flat);
    else if (pi_)
      Passes::weighted_gradient(e_.data(), row_.classes, line, steep, flat, pi());
    else
      Passes::gradient(e_.data(), row_.classes, line, steep, flat);
  }

  void write(Tokens& tokens) {
    V tile[kWidth] = {};
    each_tile([&](int64_t first, int64_t count) D3PM_MEMBER {
      for (int64_t j = 0; j < count; ++j) tile[j] = load<V>(e_.data() + (first + j) * kWidth);
      transpose<Real>(tile);
      for (unsigned i = 0; i < tokens.size; ++i) {
        Element* to = this->grad(tokens.token[i]) + first;
        row_.whole ? write_all(to, tile[i]) : write_some(to, tile[i], count);
      }
    });
  }

 private:
  using Group = typename Tokens::Group;

  // Where the rows begin that are fetched from memory during this block's passes: those of
  // `next`, taken to lie one behind the other.
  static int64_t first_row(const Tokens& tokens, const Tokens& next) {
    return next.size ? next.token[0] : tokens.token[0];
  }

  auto pi() const {
    return [pi = pi_](int64_t j) { return splat<Real>(pi[j]); };
  }

  static bool is_any_curved(const Group& group) {
    return max_lanes<Real>(group.is_curved() ? splat<Real>(1) : V{}) > 0;
  }

  // Calls body(first, count) for all classes, as many at a time as a vector has lanes where
  // there are as many; the last tile overlaps the one before it.
  template <class Body>
  D3PM_MEMBER void each_tile(const Body& body) const {
    if (row_.whole == 0) return body(0, row_.classes);
    for (int64_t j = 0; j < row_.whole; j += kWidth) body(j, kWidth);
    if (row_.whole < row_.classes) body(row_.classes - kWidth, kWidth);
  }

  const Scratch<Real> e_;
};
