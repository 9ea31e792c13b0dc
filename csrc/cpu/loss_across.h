// Across: the lanes of a vector are tokens. Vector j holds class j of as many tokens as it has
// lanes, so that all sums over classes are sums of vectors. Where the classes come first, it lies
// in memory as it is, if the tokens do one behind the other.

template <class Element, bool kGrad>
class Across : LossLayout<Element> {
  using Base = LossLayout<Element>;
  using Base::kWidth;
  using Base::pi_;
  using Base::row_;
  using Base::stride_;
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
    const auto take = [&](int64_t j, V l) D3PM_MEMBER {
      if (j == row_.forbidden) l = splat<Real>(-INFINITY);
      store(e_.data() + j * kWidth, l);
      top = l > top ? l : top;
    };
    if (stride_ == 1) {
      each_tile([&](int64_t first, int64_t count) D3PM_MEMBER {
        for (unsigned i = 0; i < kWidth; ++i) {
          const int64_t token = tokens.token[std::min(i, tokens.size - 1)];
          tile[i] = row_.whole ? read(this->logits(token) + first)
                               : row_.tail(this->logits(token), token, -INFINITY);
        }
        transpose<Real>(tile);
        for (int64_t j = 0; j < count; ++j) take(first + j, tile[j]);
      });
    } else if (are_together(tokens)) {
      const Element* const from = this->logits(tokens.token[0]);
      for (int64_t j = 0; j < row_.classes; ++j) take(j, read(from + j * stride_));
    } else {
      const Element* from[kWidth];
      for (unsigned i = 0; i < kWidth; ++i)
        from[i] = this->logits(tokens.token[std::min(i, tokens.size - 1)]);
      for (int64_t j = 0; j < row_.classes; ++j) {
        Element of_class[kWidth];
        for (unsigned i = 0; i < kWidth; ++i) of_class[i] = from[i][j * stride_];
        take(j, read(of_class));
      }
    }
    tokens.groups[0].top = top;
  }

  void exponentials(Tokens& tokens, const Tokens& next) {
    Group& group = tokens.groups[0];
    const Ahead<Element, false> fetch{this->logits(first_row(tokens, next)), ahead()};
    group.e_rest = exponentiate(e_.data(), row_.classes, group.top, fetch);
  }

  void curvature(Tokens& tokens, const Tokens& next) {
    Group& group = tokens.groups[0];
    if (!is_any_curved(group)) return;
    const int64_t after = first_row(tokens, next);
    const Ahead<Element, true> fetch{kGrad ? this->grad(after) : this->logits(after), ahead()};
    const int64_t count = row_.classes;
    group.set_bend(this->weight_);
    const auto sum =
        pi_ ? Passes::weighted_curvature(e_.data(), count, group.line(splat<Real>(1)), pi(), fetch)
            : curvature_of(group, fetch);
    group.sum_phi = sum.phi;
    group.sum_h = sum.h;
    if (!pi_) group.add_line(this->weight_);
  }

  void gradient(Tokens& tokens, double scale) {
    Group& group = tokens.groups[0];
    const V steep = group.steep * splat<Real>(scale), flat = group.flat * splat<Real>(scale);
    const int64_t count = row_.classes;
    group.set_bend(this->weight_);
    if (!is_any_curved(group))
      Passes::scale(e_.data(), count, steep + flat);
    else if (pi_)
      Passes::weighted_gradient(e_.data(), count, group.line(splat<Real>(1)), steep, flat, pi());
    else
      Passes::gradient(e_.data(), count, group.bend(), steep, flat);
  }

  void write(Tokens& tokens) {
    if (stride_ != 1) return write_classes(tokens);
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

  // Where the classes come first, many tokens at a time, whose places in memory are close.
  void fill(int64_t token, Real value) {
    if (stride_ == 1) return Base::fill(token, value);
    if (num_filled_ == kMostFilled) flush();
    Element of_value[kWidth];
    write_all(of_value, splat<Real>(value));
    filled_[num_filled_++] = {this->grad(token), of_value[0]};
  }

  void flush() {
    for (int64_t j = 0; j < row_.classes && num_filled_ > 0; ++j)
      for (unsigned i = 0; i < num_filled_; ++i) filled_[i].grad[j * stride_] = filled_[i].value;
    num_filled_ = 0;
  }

 private:
  using Group = typename Tokens::Group;

  void write_classes(const Tokens& tokens) {
    Element* to[kWidth];
    for (unsigned i = 0; i < tokens.size; ++i) to[i] = this->grad(tokens.token[i]);
    const bool together = are_together(tokens);
    for (int64_t j = 0; j < row_.classes; ++j) {
      const V of_class = load<V>(e_.data() + j * kWidth);
      if (together) {
        write_all(to[0] + j * stride_, of_class);
      } else {
        Element apart[kWidth];
        write_all(apart, of_class);
        for (unsigned i = 0; i < tokens.size; ++i) to[i][j * stride_] = apart[i];
      }
    }
  }

  // Whether the tokens are a vector's worth of neighbours in one item.
  bool are_together(const Tokens& tokens) const {
    const int64_t first = tokens.token[0];
    return tokens.size == kWidth && tokens.token[kWidth - 1] - first == kWidth - 1 &&
           first % stride_ + kWidth <= stride_;
  }

  // From a class to the next one of the rows that are fetched.
  int64_t ahead() const { return stride_ == 1 ? kWidth : stride_; }

  // Where the rows begin that are fetched from memory during this block's passes: those of
  // `next`, taken to lie one behind the other.
  static int64_t first_row(const Tokens& tokens, const Tokens& next) {
    return next.size ? next.token[0] : tokens.token[0];
  }

  auto pi() const {
    return [pi = pi_](int64_t j) { return splat<Real>(pi[j]); };
  }

  // By the form that each token asks for, whatever those beside it do.
  template <class Next>
  typename Passes::Curvature curvature_of(const Group& group, const Next& next) {
    const V tame = group.tame, by_logs = tame * group.takes_logs;
    typename Passes::Curvature sum = {};
    for (const Logs logs : {Logs::kOfAll, Logs::kOfFour, Logs::kOfEach}) {
      const V asks = logs == Logs::kOfAll    ? by_logs
                     : logs == Logs::kOfFour ? tame - by_logs
                                             : splat<Real>(1) - tame;
      if (max_lanes<Real>(asks) == 0) continue;
      const auto of =
          Passes::template curvature<kGrad>(e_.data(), row_.classes, group.bend(), logs, next);
      sum.phi = asks > V{} ? of.phi : sum.phi;
      sum.h = asks > V{} ? of.h : sum.h;
    }
    return sum;
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

  struct Filled {
    Element* grad;
    Element value;
  };

  const Scratch<Real> e_;
  static constexpr unsigned kMostFilled = 4 * kWidth;
  unsigned num_filled_ = 0;
  Filled filled_[kMostFilled];
};
