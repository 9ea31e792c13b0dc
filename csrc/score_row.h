// A class in a loss by scores, free of epsilons and of cancellation. Included inside the namespace
// of each target, so without a guard.
//
// With y the log score of class j, r = d_j / d[x_t] and g = y - log r the loss of a token is
//   v sum_{j != x_t} e^y - r y + r (log r - 1) = v sum_{j != x_t} r (e^g - 1 - g)
// and its gradient v (e^y - r) = v r (e^g - 1); e^y for both where r = 0. Where g is large, e^g may
// be out of range while e^y is not.

template <class Math>
struct ScorePoint {
  using V = typename Math::V;
  V term, slope;

  // Of ratios r, and log r = high + low.
  D3PM_HOST_DEVICE D3PM_MEMBER ScorePoint(const V& y, const V& r, const V& high, const V& low) {
    const V zero = Math::splat(0), one = Math::splat(1);
    const auto has_ratio = r > zero;
    const V gain = Math::select(has_ratio, (y - high) - low, zero);
    const auto near = has_ratio & (gain <= one);
    const auto power = Math::powers(Math::select(near, gain, y));
    term = Math::select(near, r * power.psi, power.exp - r * (one + gain));
    slope = Math::select(near, r * power.expm1, power.exp - r);
  }
};
