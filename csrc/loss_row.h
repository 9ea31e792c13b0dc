// The loss of one token of a rank-one chain, free of epsilons and of cancellation; rank_one.h
// has the notation. Included inside the namespace of each target, so without a guard.
//
// With g_j = p_j / q_j - 1 and phi(g) = g - log(1 + g) >= 0,
//   KL(q || p) = sum_j q_j phi(g_j)         (p_j where q_j = 0)
//   dKL/dlogit_i = A s_i r_i - s_i R,  r_j = (u + a [j = x_t]) / Z * h_j,  R = sum_j A s_j r_j
// where h_j = g_j / (1 + g_j), and 1 where q_j = 0. Every g_j below is written as a product or
// a sum of terms of one sign, so that the loss and its gradient keep their digits as p tends
// to q. (R is -sum_j ub_j r_j, too, whose terms do not fall with A.)
//
// The bound's density in continuous time is the limit of KL / (t - s) for s -> t, with rates v in
// place of u: a = 1, and u = 0 but in the weights of the classes other than x_t,
//   v sum_{j != x_t} d_j / d[x_t] phi(g_j),  1 + g_j = d[x_t] / f[x_t] * f_j / d_j.
// x_t itself adds nothing to it; to the gradient it adds r = g / Z, its g to first order in v.

// For class j of the rest: 1 + g_j = ratio + slope e_j / pi_j and g_j = shift + slope e_j / pi_j,
// without pi_j where all are the same and in the slope.
template <class Math>
struct LossLine {
  typename Math::V ratio, shift, slope;
};

// g and y = 1 + g at a class of the rest.
template <class Math>
struct LossPoint {
  using V = typename Math::V;
  V g, y;

  D3PM_HOST_DEVICE D3PM_MEMBER LossPoint(const LossLine<Math>& line, const V& e)
      : g(line.shift + line.slope * e), y(line.ratio + line.slope * e) {}

  // Where pi = 0, h = 1.
  D3PM_HOST_DEVICE D3PM_MEMBER LossPoint(const LossLine<Math>& line, const V& e, const V& pi) {
    const V lift = line.slope * e / pi, one = Math::splat(1);
    const auto reachable = pi > Math::splat(0);
    g = Math::select(reachable, line.shift + lift, one);
    y = Math::select(reachable, line.ratio + lift, one);
  }
};

// A class that is treated on its own: its weight c of staying or leaving, its d_j, ub_j, s_j and
// g_j, and y = 1 + g_j to its last digit; what d_j must be above for q_j to be above 0; whether the
// class adds to the divergence.
template <class Math>
struct ClassApart {
  typename Math::V c, d, bar, s, g, y, least;
  typename Math::Bits adds;
};

// What a class adds to the divergence, and its A s_j r_j.
template <class Math>
struct LossPart {
  typename Math::V term, pull;
};

// What of a token's loss is known before its row is read.
template <class Math>
struct KnownLoss {
  using V = typename Math::V;

  // The step.
  V keep, bar_keep, bar_base, vb, ce;
  // 1 or 0, whether the model is the posterior mean.
  V is_tilted;
  // 1 or 0, where terms are wanted, else 0: whether the divergence is the bound's term, and whether
  // the cross-entropy is.
  V diverges, is_direct;
  // The step as the special classes see it; bar_mask is 0 where the mask is x_0 or x_t. Of a
  // density, `spread` is v, and `spread_in_z` is 0; else they are the same. `tilt` is of s[x_t].
  V spread, spread_in_z, bar_x0, bar_xt, bar_mask, same, tilt;
  bool is_density;

  // Fills in the second group, from the classes, from pi at each of them, and from the step.
  template <class Classes, class Class>
  D3PM_HOST_DEVICE void look_up(const Classes& x0, const Classes& x_t, Class mask_id,
                                const V& pi_x0, const V& pi_xt, const V& pi_mask, const V& base,
                                const V& to_mask, const V& bar_to_mask, bool of_density) {
    const V zero = Math::splat(0);
    const auto x0_is_mask = x0 == mask_id, xt_is_mask = x_t == mask_id;
    const V of_mask = bar_base * pi_mask + bar_to_mask;
    same = Math::select(x0 == x_t, Math::splat(1), zero);
    spread = base * pi_xt + Math::select(xt_is_mask, to_mask, zero);
    is_density = of_density;
    spread_in_z = is_density ? zero : spread;
    bar_x0 = Math::select(x0_is_mask, of_mask, bar_base * pi_x0);
    bar_xt = Math::select(xt_is_mask, of_mask, bar_base * pi_xt);
    bar_mask = Math::select((x0_is_mask | xt_is_mask) != 0, zero, of_mask);
    const V other = keep * bar_xt + spread_in_z;
    const V posterior_mean = other * Math::reciprocal(keep * bar_keep + other);
    tilt = Math::select((is_tilted > zero) & (other > zero), posterior_mean, Math::splat(1));
  }

  // Whether h is not 1 on all of the rest.
  D3PM_HOST_DEVICE typename Math::Bits is_curved() const {
    const V zero = Math::splat(0);
    return (bar_base > Math::splat(Math::tiny)) & ((vb != zero) | (diverges != zero));
  }
};

// One token's loss and gradient, in three strokes: the caller fills in what is known and what a
// pass over the row says, calls solve(), sums phi and h over the other classes along line(), and
// calls finish(). V is a scalar or a vector of tokens; Math has its select, where, exp, log1p, phi
// and reciprocal, and rough_log, whose error may be absolute. Of `where`, a scalar computes one
// side only.
template <class Math>
struct LossRow : KnownLoss<Math> {
  using V = typename Math::V;
  using Bits = typename Math::Bits;
  using Apart = ClassApart<Math>;
  using Part = LossPart<Math>;
  using Known = KnownLoss<Math>;
  using Known::bar_mask, Known::same, Known::tilt, Known::is_curved;
  using Known::is_density;
  using Known::is_direct, Known::spread, Known::spread_in_z, Known::bar_x0, Known::bar_xt;
  using Known::keep, Known::bar_keep, Known::bar_base, Known::vb, Known::ce, Known::diverges;

  // The row: exp(logit - top) at x_0, x_t, the mask (0 where it is one of the two) and summed
  // over the rest; top - logit[x_0]. Any number near the largest logit will do for `top`.
  V e_x0, e_xt, e_mask, e_rest, below_top;
  // The line of a rest with curvature, by pi_j.
  V ratio, shift, slope;
  // Sums over the rest, where it is curved: pi_j phi(g_j) and e_j h_j.
  V sum_phi, sum_h;
  // The result. The gradient of class j of the rest is e_j (steep h_j + flat).
  V loss, steep, flat, grad_x0, grad_xt, grad_mask;
  // The terms of the loss, without weights.
  V divergence, cross_entropy;

  D3PM_HOST_DEVICE V bound() const {
    const V zero = Math::splat(0);
    const V of_step = Math::select(diverges != zero, divergence, zero);
    return Math::select(is_direct != zero, cross_entropy, of_step);
  }

  // Fills in the row but for e_rest; the mask's logit is -inf where it is x_0 or x_t.
  D3PM_HOST_DEVICE void read(const V& top, const V& logit_x0, const V& logit_xt,
                             const V& logit_mask) {
    e_x0 = Math::exp(logit_x0 - top);
    e_xt = Math::exp(logit_xt - top);
    e_mask = Math::exp(logit_mask - top);
    below_top = top - logit_x0;
  }

  // With 1 / pi_j for `weight` where all are the same, else 1.
  D3PM_HOST_DEVICE LossLine<Math> line(const V& weight) const {
    const V one = Math::splat(1), zero = Math::splat(0);
    const auto curved = is_curved();
    return {Math::select(curved, ratio, one), Math::select(curved, shift, one),
            Math::select(curved, slope * weight, zero)};
  }

  D3PM_HOST_DEVICE void solve() {
    const V one = Math::splat(1), zero = Math::splat(0);
    const auto is_same = same > zero;
    const V raw_xt = Math::select(is_same, zero, e_xt);
    others_ = e_rest + e_mask + raw_xt;
    const V sum = e_x0 + others_;
    per_sum_ = Math::reciprocal(sum);
    const auto leads = others_ < e_x0;
    const V beyond = Math::select(leads, others_ * Math::reciprocal(e_x0), sum - one);
    cross_entropy = Math::select(leads, zero, below_top) + Math::log1p(beyond);

    tilt_x0_ = Math::select(is_same, tilt, one);
    const V t_x0 = e_x0 * tilt_x0_;
    const V t_xt = raw_xt * tilt;
    const V t_others = e_rest + e_mask + t_xt;
    inv_ = Math::reciprocal(t_x0 + t_others);
    s_x0_ = t_x0 * inv_;
    s_xt_ = t_xt * inv_;
    s_mask_ = e_mask * inv_;
    not_x0_ = t_others * inv_;

    d_x0_ = bar_keep + bar_x0;
    per_d_x0_ = Math::reciprocal(d_x0_);
    f_x0_ = bar_keep * s_x0_ + bar_x0;
    const V d_xt = Math::select(is_same, d_x0_, bar_xt);
    const V f_xt = Math::select(is_same, f_x0_, bar_keep * s_xt_ + bar_xt);
    const V zq = spread_in_z + keep * d_xt;
    per_z_ = Math::reciprocal(spread_in_z + keep * f_xt);
    per_zq_ = Math::reciprocal(zq);
    shift = keep * bar_keep * Math::select(is_same, not_x0_, -s_xt_) * per_z_;
    ratio = one_plus(shift, zq * per_z_);
    slope = ratio * bar_keep * inv_ * Math::reciprocal(bar_base);

    const V fall = Math::select(is_same, spread * not_x0_,
                                not_x0_ * (spread_in_z + keep * bar_xt) + keep * d_x0_ * s_xt_);
    g_x0_ = Math::select(d_x0_ > zero, -(bar_keep * per_d_x0_) * (fall * per_z_), zero);
  }

  D3PM_HOST_DEVICE Apart at_x0() const {
    const V zero = Math::splat(0);
    const V c = Math::select(same > zero, spread_in_z + keep, spread);
    const V y = one_plus(g_x0_, f_x0_ * per_d_x0_ * ratio);
    const Bits other = same == zero;
    const Bits adds = is_density ? other : always();
    return {c, d_x0_, bar_x0, s_x0_, g_x0_, y, zero, adds};
  }

  // x_t, where it is another class.
  D3PM_HOST_DEVICE Apart at_xt() const {
    const V g = spread * Math::reciprocal(bar_xt) * (bar_keep * s_xt_ * per_z_);
    const V one = Math::splat(1), zero = Math::splat(0), y = is_density ? one : one + g;
    const Bits adds = is_density ? Bits(zero != zero) : always();
    return {spread_in_z + keep, bar_xt, bar_xt, s_xt_, g, y, Math::splat(Math::tiny), adds};
  }

  // The mask, where it is neither.
  D3PM_HOST_DEVICE Apart at_mask() const {
    const V lift = ratio * bar_keep * s_mask_ * Math::reciprocal(bar_mask);
    return {
        spread,  bar_mask, bar_mask, s_mask_, shift + lift, ratio + lift, Math::splat(Math::tiny),
        always()};
  }

  // phi(g) of x_0, given what its g and y say. Where ub = 0 its ratio is that of s, whose logarithm
  // outlives its underflow.
  D3PM_HOST_DEVICE V phi_of_x0(const Apart& of, const V& near) const {
    const auto is_far = (bar_x0 <= Math::splat(Math::tiny)) & (of.g < Math::splat(-0.5));
    const auto far = [&] {
      const V sum = e_x0 + others_;
      return of.g + cross_entropy - Math::rough_log(tilt_x0_ * sum * inv_ * ratio);
    };
    return Math::where(is_far, far, [&] { return near; });
  }

  // What a class apart adds: q phi(g), also where q is below the range, or p where q = 0.
  D3PM_HOST_DEVICE Part part(const Apart& of, const V& phi) const {
    const V zero = Math::splat(0);
    const V of_model = bar_keep * of.s, f = of_model + of.bar;
    const V p = of.c * per_z_ * f, q = of.c * per_zq_ * of.d;
    const V w =
        Math::select(is_more_than_tiny(of.bar), of_model * Math::reciprocal(f), Math::splat(1));
    const auto is_of_data = (of.c > zero) & (of.d > of.least);
    const V near = Math::select(phi < Math::splat(INFINITY), q * phi, phi);
    const V term = Math::select(is_of_data, near, p);
    return {Math::select(of.adds, term, zero), Math::select(is_of_data, q * of.g * w, p)};
  }

  D3PM_HOST_DEVICE void finish(bool has_mask) {
    const V zero = Math::splat(0);
    const auto other = same == zero;
    const Apart x0 = at_x0(), x_t = at_xt();
    const Part of_x0 = part(x0, phi_of_x0(x0, Math::phi(x0.g, x0.y)));
    const Part raw_xt = part(x_t, Math::phi(x_t.g, x_t.y));
    Part of_xt = {Math::select(other, raw_xt.term, zero), Math::select(other, raw_xt.pull, zero)};
    Part of_mask = {zero, zero};
    if (has_mask) {
      const Apart mask = at_mask();
      of_mask = part(mask, Math::phi(mask.g, mask.y));
    }
    conclude(of_x0, {of_xt.term + of_mask.term, of_xt.pull + of_mask.pull});
    grad_xt = gradient(of_xt.pull, s_xt_, e_xt);
    grad_mask = gradient(of_mask.pull, s_mask_, e_mask);
  }

  // Sets the result but for the gradient of x_t and the mask, from their parts together.
  D3PM_HOST_DEVICE void conclude(const Part& of_x0, const Part& of_others) {
    const V zero = Math::splat(0);
    const V away = spread * per_z_ * bar_keep * inv_;
    const V term_rest = Math::select(is_more_than_tiny(bar_base),
                                     spread * per_zq_ * bar_base * sum_phi, away * e_rest);
    divergence = of_x0.term + of_others.term + term_rest;
    const V pull_others = of_others.pull + away * Math::select(is_curved(), sum_h, e_rest);

    const auto bound = vb != zero;
    loss = Math::select(bound, vb * divergence, zero) +
           Math::select(ce != zero, ce * cross_entropy, zero);
    common_ = Math::select(bound, -vb * (of_x0.pull + pull_others), zero);
    share_ = ce * per_sum_;
    steep = Math::select(bound, vb * away, zero);
    flat = common_ * inv_ + share_;
    const V slant = of_x0.pull * not_x0_ - s_x0_ * pull_others;
    grad_x0 = Math::select(bound, vb * slant, zero) - share_ * others_;
  }

  // The gradient of a class apart but x_0.
  D3PM_HOST_DEVICE V gradient(const V& pull, const V& s, const V& e) const {
    const V zero = Math::splat(0);
    return Math::select(vb != zero, vb * pull, zero) + common_ * s + share_ * e;
  }

  D3PM_HOST_DEVICE V s_xt() const { return s_xt_; }
  D3PM_HOST_DEVICE V s_mask() const { return s_mask_; }

 private:
  // 1 + g, where a product of rounded factors is less close to it than g is; else that product.
  static D3PM_HOST_DEVICE V one_plus(const V& g, const V& product) {
    return Math::select(g > Math::splat(-0.5), Math::splat(1) + g, product);
  }

  static D3PM_HOST_DEVICE Bits always() { return Math::splat(0) == Math::splat(0); }

  static D3PM_HOST_DEVICE Bits is_more_than_tiny(const V& x) { return x > Math::splat(Math::tiny); }

  V others_, per_sum_, inv_, tilt_x0_, s_x0_, not_x0_, s_xt_, s_mask_;
  V d_x0_, per_d_x0_, f_x0_, per_z_, per_zq_, g_x0_, common_, share_;
};
