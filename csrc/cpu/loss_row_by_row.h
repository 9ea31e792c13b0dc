// Row by row: the lanes of a vector are classes of one token.

// With kSlant for the sums that a gradient needs. Full vectors stand in the gradient's own row
// where it has the type of the calculation, the last vector in a place of its own.
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
  using Base::fill, Base::flush;
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
    for (unsigned g = 0; g < tokens.num_groups(); ++g) tokens.groups[g].set_bend(this->weight_);
    for (unsigned i = 0; i < tokens.size; ++i) {
      if (!is_curved(tokens, i)) continue;
      const LossLine<M> line = line_of(tokens, i);
      const LossBend<Real> bend = bend_of(tokens, i);
      const bool tame = tokens.get(i, &Group::tame) > 0,
                 all = tokens.get(i, &Group::takes_logs) > 0;
      const Logs logs = tame ? all ? Logs::kOfAll : Logs::kOfFour : Logs::kOfEach;
      const int64_t after = row_after(tokens, next, i);
      const Element* ahead = kGrad ? this->grad(after) : this->logits(after);
      double phi = 0, h = 0;
      each_stretch(tokens, i, [&](int64_t j, const Real* e, int64_t count) D3PM_MEMBER {
        const Ahead<Element, true> fetch{ahead + j};
        const auto sum = pi_ ? Passes::weighted_curvature(e, count, line, pi(j), fetch)
                             : Passes::template curvature<kSlant>(e, count, bend, logs, fetch);
        phi += sum_lanes<Real>(sum.phi);
        h += sum_lanes<Real>(sum.h);
      });
      tokens.set(i, &Group::sum_phi, phi);
      tokens.set(i, &Group::sum_h, h);
    }
    if (pi_) return;
    for (unsigned g = 0; g < tokens.num_groups(); ++g) tokens.groups[g].add_line(this->weight_);
  }

  void gradient(Tokens& tokens, double scale) {
    for (unsigned g = 0; g < tokens.num_groups(); ++g) tokens.groups[g].set_bend(this->weight_);
    for (unsigned i = 0; i < tokens.size; ++i) {
      const V steep = splat<Real>(tokens.get(i, &Group::steep) * scale);
      const V flat = splat<Real>(tokens.get(i, &Group::flat) * scale);
      const bool curved = is_curved(tokens, i);
      const LossLine<M> line = line_of(tokens, i);
      const LossBend<Real> bend = bend_of(tokens, i);
      each_stretch(tokens, i, [&](int64_t j, Real* e, int64_t count) D3PM_MEMBER {
        if (!curved)
          Passes::scale(e, count, steep + flat);
        else if (pi_)
          Passes::weighted_gradient(e, count, line, steep, flat, pi(j));
        else
          Passes::gradient(e, count, bend, steep, flat);
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
    return tokens.get(i, &Group::curved) != 0;
  }

  LossLine<M> line_of(const Tokens& tokens, unsigned i) const {
    return {splat<Real>(tokens.get(i, &Group::ratio)), splat<Real>(tokens.get(i, &Group::shift)),
            splat<Real>(tokens.get(i, &Group::slope))};
  }

  LossBend<Real> bend_of(const Tokens& tokens, unsigned i) const {
    return {splat<Real>(tokens.get(i, &Group::lift)), splat<Real>(tokens.get(i, &Group::h_0)),
            splat<Real>(tokens.get(i, &Group::takes_logs)) > V{}};
  }

  const Scratch<Real> scratch_;
  const V last_pi_;
  alignas(V) Real last_[kMost][kWidth];
};
