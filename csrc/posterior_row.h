// The posteriors of one token of a rank-one chain; rank_one.h has the notation. Included inside
// the namespace of each target, so without a guard.
//
//   log q_j = log(c_j / Zq) + log d_j,  log p_j = log(c_j / Z) + log f_j,  c_j = u + a [j = x_t]
//
// For G = dL/dlog p:  dL/dlogit_i = w_i G_i - s_i (c_i A / Z sum(G) + D), with w_i = A s_i / f_i
// (1 where ub_i = 0) and D what makes the sum over i zero.

// f_j at a class, from A s_j and ub_j. Math may be that of vectors.
template <class Math>
struct Mixture {
  using V = typename Math::V;
  V model, spread;

  // Where ub_j = 0, f_j = A s_j, whose logarithm is rounded only after the level of the logits is
  // gone.
  D3PM_HOST_DEVICE D3PM_MEMBER V log(const V& log_model) const {
    return Math::select(has_spread(), Math::log(model + spread), log_model);
  }

  // w_j.
  D3PM_HOST_DEVICE D3PM_MEMBER V share() const {
    return Math::select(has_spread(), model / (model + spread), Math::splat(1));
  }

 private:
  D3PM_HOST_DEVICE D3PM_MEMBER typename Math::Bits has_spread() const {
    return spread > Math::splat(Math::tiny);
  }
};

// A token of good classes before its row is read. Math is that of single numbers, and Pi the type
// of the chain's vector.
template <class Math, class Pi>
struct PosteriorToken {
  using Real = typename Math::V;

  Vector<Pi> vector;
  int64_t x_t = 0;
  const StepCoefficients* step = nullptr;  // null where x_0 is predicted, as if all led to x_t
  Real keep = 0, u = 1, bar_keep = 1, bar_base = 0, bar_mask = 0, tilt = 1;

  PosteriorToken() = default;
  D3PM_HOST_DEVICE D3PM_MEMBER PosteriorToken(const StepCoefficients& step,
                                              const Vector<Pi>& vector, const Model& model,
                                              int64_t x_t)
      : vector(vector), x_t(x_t) {
    if (model.predicts_x0(step)) return;
    this->step = &step;
    keep = static_cast<Real>(step.keep);
    u = static_cast<Real>(vector(step.base, step.mask, x_t));
    bar_keep = static_cast<Real>(step.bar_keep);
    bar_base = static_cast<Real>(step.bar_base);
    bar_mask = static_cast<Real>(step.bar_mask);
    if (model.posterior_mean)
      tilt = static_cast<Real>(posterior_mean_tilt(keep, u, bar_keep, spread(x_t)));
  }

  // Whether no other class than x_t leads to x_t, so that log p is `fixed` whatever the row.
  D3PM_HOST_DEVICE bool stays() const { return u == 0; }
  D3PM_HOST_DEVICE Real fixed(int64_t j) const { return j == x_t ? Real(0) : -INFINITY; }

  // c_j and ub_j.
  D3PM_HOST_DEVICE Real reach(int64_t j) const { return u + (j == x_t ? keep : Real(0)); }
  D3PM_HOST_DEVICE Real spread(int64_t j) const {
    return static_cast<Real>(vector(bar_base, bar_mask, j));
  }

  // log A, also where A is below the range of Real.
  D3PM_HOST_DEVICE Real log_bar_keep() const {
    return bar_keep > Math::tiny ? Math::log(bar_keep)
                                 : static_cast<Real>(std::log(step->bar_keep));
  }
};

template <class Math, class Pi>
struct QPosteriorToken : PosteriorToken<Math, Pi> {
  using Base = PosteriorToken<Math, Pi>;
  using typename Base::Real;

  int64_t x0 = 0;
  bool is_possible = false;  // whether the chain can go from x_0 to x_t
  Real leave = 0, stay = 0;  // c_j / Zq, at x_t: stay

  QPosteriorToken() = default;
  D3PM_HOST_DEVICE D3PM_MEMBER QPosteriorToken(const StepCoefficients& step,
                                               const Vector<Pi>& vector, int64_t x0, int64_t x_t)
      : Base(step, vector, {}, x_t), x0(x0) {
    is_possible = !this->stays() || !never_stays(step, x0 == x_t, this->spread(x_t));
    const Real zq = this->u + this->keep * truth(x_t);
    leave = this->u / zq;
    stay = (this->u + this->keep) / zq;
  }

  // d_j.
  D3PM_HOST_DEVICE Real truth(int64_t j) const {
    return this->spread(j) + (j == x0 ? this->bar_keep : Real(0));
  }

  D3PM_HOST_DEVICE Real log_q(int64_t j) const {
    const Real reach = j == this->x_t ? stay : leave, d = truth(j), q = reach * d;
    if (sizeof(Real) == sizeof(double) || q > Math::tiny) return Math::log(q);
    const bool is_kept = j == x0 && this->spread(j) == 0;
    return Math::log(reach) + (is_kept ? this->log_bar_keep() : Math::log(d));
  }
};

template <class Math, class Pi>
struct PPosteriorToken : PosteriorToken<Math, Pi> {
  using Base = PosteriorToken<Math, Pi>;
  using typename Base::Real;

  int64_t forbidden = -1;
  // Of the row: its sum, s[x_t] and Z.
  Real sum = 1, inv = 1, s_xt = 0, z = 1;

  PPosteriorToken() = default;
  D3PM_HOST_DEVICE D3PM_MEMBER PPosteriorToken(const StepCoefficients& step,
                                               const Vector<Pi>& vector, const PPosterior& call,
                                               int64_t x_t)
      : Base(step, vector, call.model, x_t), forbidden(call.chain.forbidden) {}

  // Takes in exp(logit - top), with the tilt, summed and at x_t.
  D3PM_HOST_DEVICE void predict(Real of_row, Real at_xt) {
    sum = of_row;
    inv = 1 / sum;
    s_xt = at_xt * inv;
    z = this->u + this->keep * (this->bar_keep * s_xt + this->spread(this->x_t));
  }

  // Whether anything leads to x_t; x_t itself may, with a chance below the range of Real.
  D3PM_HOST_DEVICE bool is_possible() const { return !this->stays() || this->step->keep > 0; }

  D3PM_HOST_DEVICE D3PM_MEMBER Mixture<Math> mixture(Real e, int64_t j) const {
    return {this->bar_keep * (e * inv), this->spread(j)};
  }

  // Of the prediction in f_j, for the gradient: also where that is all there is, but not of a
  // class that it cannot predict.
  D3PM_HOST_DEVICE D3PM_MEMBER Real share(Real e, int64_t j) const {
    return j == forbidden ? Real(0) : mixture(e, j).share();
  }
};

// log p of a token whose row is read.
template <class Math, class Pi>
struct LogP {
  using Token = PPosteriorToken<Math, Pi>;
  using Real = typename Token::Real;

  const Token& token;
  Real log_leave, log_stay;  // log(c_j / Z), at x_t: log_stay
  Real log_bar_keep, log_sum, log_tilt;

  D3PM_HOST_DEVICE D3PM_MEMBER explicit LogP(const Token& token)
      : token(token),
        log_leave(Math::log(token.u / token.z)),
        log_stay(Math::log((token.u + token.keep) / token.z)),
        log_bar_keep(token.log_bar_keep()),
        log_sum(Math::log(token.sum)),
        log_tilt(Math::log(token.tilt)) {}

  // From logit - top and its exponential, with the tilt.
  D3PM_HOST_DEVICE D3PM_MEMBER Real operator()(Real above, Real e, int64_t j) const {
    const bool here = j == token.x_t;
    const Real log_s = above + (here ? log_tilt : Real(0)) - log_sum;
    return (here ? log_stay : log_leave) + token.mixture(e, j).log(log_bar_keep + log_s);
  }
};

// The gradient of a token whose row is read.
template <class Math, class Pi>
struct PosteriorGradient {
  using Token = PPosteriorToken<Math, Pi>;
  using Real = typename Token::Real;

  const Token& token;
  Real pull, level;  // A / Z sum(G), and D

  D3PM_HOST_DEVICE PosteriorGradient(const Token& token, Real sum, Real weighted_sum)
      : token(token),
        pull(token.bar_keep / token.z * sum),
        level(weighted_sum - pull * (token.u + token.keep * token.s_xt)) {}

  // From G and exp(logit - top), with the tilt.
  D3PM_HOST_DEVICE Real operator()(Real upstream, Real e, int64_t j) const {
    const Real s = e * token.inv;
    return token.share(e, j) * upstream - s * (token.reach(j) * pull + level);
  }
};
