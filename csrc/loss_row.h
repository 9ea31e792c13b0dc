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

// One token's loss and gradient, in three strokes: the caller fills the first two groups from
// the step and from a pass over the row, calls solve(), sums phi and h over the other classes
// along line(), and calls finish(). V is a scalar or a vector of tokens; Math has its select, exp,
// log, log1p and phi.
template <class Math>
struct LossRow {
  using V = typename Math::V;

  // The step.
  V keep, bar_keep, bar_base, tilt, vb, ce;
  // 1 or 0, where terms are wanted, else 0: whether the divergence is the bound's term, and whether
  // the cross-entropy is.
  V diverges, is_direct;
  // The step as the special classes see it; bar_mask is 0 where the mask is x_0 or x_t. Of a
  // density, `spread` is v, and `spread_in_z` is 0; else they are the same.
  V spread, spread_in_z, bar_x0, bar_xt, bar_mask, same;
  // The row: exp(logit - top) at x_0, x_t, the mask (0 where it is one of the two) and summed
  // over the rest; top - logit[x_0].
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

  // Fills in the second group, from the classes, from pi at each of them, and from the step.
  template <class Classes, class Class>
  D3PM_HOST_DEVICE void look_up(const Classes& x0, const Classes& x_t, Class mask_id,
                                const V& pi_x0, const V& pi_xt, const V& pi_mask, const V& base,
                                const V& to_mask, const V& bar_to_mask, bool is_density) {
    const V zero = Math::splat(0);
    const auto x0_is_mask = x0 == mask_id, xt_is_mask = x_t == mask_id;
    const V of_mask = bar_base * pi_mask + bar_to_mask;
    same = Math::select(x0 == x_t, Math::splat(1), zero);
    spread = base * pi_xt + Math::select(xt_is_mask, to_mask, zero);
    spread_in_z = is_density ? zero : spread;
    bar_x0 = Math::select(x0_is_mask, of_mask, bar_base * pi_x0);
    bar_xt = Math::select(xt_is_mask, of_mask, bar_base * pi_xt);
    bar_mask = Math::select((x0_is_mask | xt_is_mask) != 0, zero, of_mask);
  }

  // Fills in the third group but for e_rest; the mask's logit is -inf where it is x_0 or x_t.
  D3PM_HOST_DEVICE void read(const V& top, const V& logit_x0, const V& logit_xt,
                             const V& logit_mask) {
    e_x0 = Math::exp(logit_x0 - top);
    e_xt = Math::exp(logit_xt - top);
    e_mask = Math::exp(logit_mask - top);
    below_top = top - logit_x0;
  }

  // Whether h is not 1 on all of the rest.
  D3PM_HOST_DEVICE typename Math::Bits is_curved() const {
    const V zero = Math::splat(0);
    return (bar_base > Math::splat(Math::tiny)) & ((vb != zero) | (diverges != zero));
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
    sum_ = e_x0 + others_;
    // sum >= 1; where x_0 has the largest logit, sum - 1 is `others` to the last digit.
    const V beyond = Math::select(below_top == zero, others_, sum_ - one);
    cross_entropy = below_top + Math::log1p(beyond);

    const V tilt_x0 = Math::select(is_same, tilt, one);
    const V t_x0 = e_x0 * tilt_x0;
    const V t_xt = raw_xt * tilt;
    const V t_others = e_rest + e_mask + t_xt;
    inv_ = one / (t_x0 + t_others);
    s_x0_ = t_x0 * inv_;
    s_xt_ = t_xt * inv_;
    s_mask_ = e_mask * inv_;
    not_x0_ = t_others * inv_;

    d_x0_ = bar_keep + bar_x0;
    f_x0_ = bar_keep * s_x0_ + bar_x0;
    const V d_xt = Math::select(is_same, d_x0_, bar_xt);
    f_xt_ = Math::select(is_same, f_x0_, bar_keep * s_xt_ + bar_xt);
    z_ = spread_in_z + keep * f_xt_;
    zq_ = spread_in_z + keep * d_xt;
    shift = keep * bar_keep * Math::select(is_same, not_x0_, -s_xt_) / z_;
    ratio = one_plus(shift, zq_ / z_);
    slope = ratio * bar_keep * inv_ / bar_base;

    const V fall = Math::select(is_same, spread * not_x0_,
                                not_x0_ * (spread_in_z + keep * bar_xt) + keep * d_x0_ * s_xt_);
    g_x0_ = Math::select(d_x0_ > zero, -(bar_keep / d_x0_) * (fall / z_), zero);
    log_s_x0_ = -cross_entropy + Math::log(tilt_x0 * sum_ * inv_);
  }

  D3PM_HOST_DEVICE void finish() {
    const V zero = Math::splat(0), one = Math::splat(1), tiny = Math::splat(Math::tiny);
    const auto is_same = same > zero, is_density = spread_in_z != spread;
    const V stay = spread_in_z + keep;

    // x_0. Where ub = 0 its ratio is that of s, whose logarithm outlives its underflow.
    const V c_x0 = Math::select(is_same, stay, spread);
    const V q_x0 = c_x0 / zq_ * d_x0_;
    const auto has_x0 = bar_x0 > tiny;
    const V r_x0 = one_plus(g_x0_, f_x0_ / d_x0_ * ratio);
    const V far = g_x0_ - log_s_x0_ - Math::log(ratio);
    const V phi_x0 =
        Math::select((bar_x0 <= tiny) & (g_x0_ < Math::splat(-0.5)), far, Math::phi(g_x0_, r_x0));
    const V w_x0 = Math::select(has_x0, bar_keep * s_x0_ / f_x0_, one);
    // Also where q_x0 is below the range.
    const auto possible = (c_x0 > zero) & (d_x0_ > zero) & ((is_density & is_same) == 0);
    const V weighted = Math::select(phi_x0 < Math::splat(INFINITY), q_x0 * phi_x0, phi_x0);
    const V term_x0 = Math::select(possible, weighted, zero);
    const V pull_x0 = q_x0 * g_x0_ * w_x0;

    // x_t, where it is another class.
    const auto has_xt = bar_xt > tiny;
    const V g_xt = spread / bar_xt * (bar_keep * s_xt_ / z_);
    const V r_xt = one + Math::select(is_density, zero, g_xt);
    const V h_xt = Math::select(has_xt, g_xt / r_xt, one);
    const V near_xt = Math::select(is_density, zero, Math::phi(g_xt, r_xt));
    const V term_xt = Math::select(has_xt, stay / zq_ * bar_xt * near_xt, stay / z_ * f_xt_);
    const V pull_xt = stay / z_ * bar_keep * s_xt_ * h_xt;

    // The mask, where it is neither.
    const auto has_mask = bar_mask > tiny;
    const V lift = ratio * bar_keep * s_mask_ / bar_mask;
    const V r_mask = ratio + lift;
    const V h_mask = Math::select(has_mask, (shift + lift) / r_mask, one);
    const V term_mask =
        Math::select(has_mask, spread / zq_ * bar_mask * Math::phi(shift + lift, r_mask),
                     spread / z_ * bar_keep * s_mask_);
    const V pull_mask = spread / z_ * bar_keep * s_mask_ * h_mask;

    const auto has_base = bar_base > tiny;
    const V term_rest = Math::select(has_base, spread / zq_ * bar_base * sum_phi,
                                     spread / z_ * bar_keep * e_rest * inv_);
    const V pull_rest = spread / z_ * bar_keep * Math::select(is_curved(), sum_h, e_rest) * inv_;

    divergence = term_x0 + Math::select(is_same, zero, term_xt) + term_mask + term_rest;
    const V pull_others = Math::select(is_same, zero, pull_xt) + pull_mask + pull_rest;

    const auto bound = vb != zero;
    const auto hybrid = ce != zero;
    loss =
        Math::select(bound, vb * divergence, zero) + Math::select(hybrid, ce * cross_entropy, zero);
    const V common = Math::select(bound, -vb * (pull_x0 + pull_others), zero);
    const V share = ce / sum_;
    steep = Math::select(bound, vb * (spread / z_) * bar_keep * inv_, zero);
    flat = common * inv_ + share;
    const V slant_x0 = pull_x0 * not_x0_ - s_x0_ * pull_others;
    grad_x0 = Math::select(bound, vb * slant_x0, zero) - share * others_;
    grad_xt = Math::select(bound, vb * pull_xt, zero) + common * s_xt_ + share * e_xt;
    grad_mask = Math::select(bound, vb * pull_mask, zero) + common * s_mask_ + share * e_mask;
  }

 private:
  // 1 + g, where a product of rounded factors is less close to it than g is; else that product.
  static D3PM_HOST_DEVICE V one_plus(const V& g, const V& product) {
    return Math::select(g > Math::splat(-0.5), Math::splat(1) + g, product);
  }

  V others_, sum_, inv_, s_x0_, not_x0_, s_xt_, s_mask_;
  V d_x0_, f_x0_, f_xt_, z_, zq_, g_x0_, log_s_x0_;
};
