// The exponential and what is left of it without its first terms, of single numbers and vectors of
// them. Included inside the namespace of each target, behind phi.h, so without a guard.

// exp(x) = scale (1 + rest + curve): scale is a power of 2, |rest| < 0.35, and
// curve = exp(rest) - 1 - rest. NaN is a rest of NaN.
template <class V>
struct SplitExp {
  V rest, curve, scale;
};

// For |x| < 87.3.
template <class Math>
D3PM_HOST_DEVICE inline D3PM_MEMBER SplitExp<typename Math::V> split_exp(
    const typename Math::V& x) {
  using V = typename Math::V;
  using Words = typename Math::Words;
  const V shifted = x * 1.44269504088896341f + 12582912.0f;  // its low bits are round(x / ln 2)
  const V n = shifted - 12582912.0f;
  const V r = (x - n * kLn2High) - n * kLn2Low;
  V p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  const Words power = bit_cast<Words>(shifted) << 23;
  return {r, p * (r * r), bit_cast<V>(bit_cast<Words>(V{} + 1.0f) + power)};
}

// exp(x), exp(x) - 1 and exp(x) - 1 - x, each to its own last digits.
template <class V>
struct Powers {
  V exp, expm1, psi;
};

// In float, for any x; by that of x / 2, whose square has the range, and for |x| < 0.69 no
// difference.
template <class Math>
D3PM_HOST_DEVICE inline D3PM_MEMBER Powers<typename Math::V> powers_in_float(
    const typename Math::V& x) {
  using V = typename Math::V;
  const V half = 0.5f * x;
  const V low = Math::select(half < -60.0f, Math::splat(-60), half);
  const auto s = split_exp<Math>(Math::select(low > 45.0f, Math::splat(45), low));
  const V rest = s.rest + s.curve;
  const V root = s.scale * rest + s.scale, less = s.scale * rest + (s.scale - 1.0f);
  const V expm1 = less * less + 2.0f * less;
  const V near = less * less + 2.0f * s.curve;
  return {root * root, expm1, Math::select(s.scale == 1.0f, near, expm1 - x)};
}

// exp(x) - 1 - x in double for |x| < 0.5, by its series.
template <class V>
D3PM_HOST_DEVICE inline D3PM_MEMBER V psi_near_zero(const V& x) {
  V p = x / 17.0 + 1.0;
  for (double n = 16; n > 2; --n) p = p * x / n + 1.0;
  return 0.5 * x * x * p;
}

// In double, from `turned`: exp(x) for x < -1, else exp(x) - 1.
template <class Math>
D3PM_HOST_DEVICE inline D3PM_MEMBER Powers<typename Math::V> powers_in_double(
    const typename Math::V& x, const typename Math::V& turned) {
  using V = typename Math::V;
  const auto low = x < -1.0;
  const V expm1 = Math::select(low, turned - 1.0, turned);
  const V psi = Math::select((x > -0.5) & (x < 0.5), psi_near_zero(x), expm1 - x);
  return {Math::select(low, turned, turned + 1.0), expm1, psi};
}
