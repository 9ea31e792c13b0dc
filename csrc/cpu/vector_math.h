// The mathematics of vectors; phi.h has what CUDA shares.

template <class Real>
struct Math;

template <>
struct Math<float> {
  using V = VectorOf<float>::Type;
  using Bits = VectorOf<float>::Bits;
  using Words = VectorOf<float>::Words;
  using Ints = Bits;
  static constexpr double tiny = kTiny<float>;

  D3PM_INLINE V splat(double value) { return V{} + static_cast<float>(value); }

  D3PM_INLINE V select(const Bits& mask, const V& yes, const V& no) { return mask ? yes : no; }

  D3PM_INLINE V to_real(const Ints& n) { return __builtin_convertvector(n, V); }

  // exp(x) = scale (1 + rest), for x in [-87.3, 0]; scale is a power of 2. NaN is a rest of NaN.
  struct SplitExp {
    V rest, scale;
  };
  D3PM_INLINE SplitExp split_exp(const V& x) {
    const V shifted = x * 1.44269504088896341f + 12582912.0f;  // its low bits are round(x / ln 2)
    const V n = shifted - 12582912.0f;
    const V r = (x - n * kLn2High) - n * kLn2Low;
    V p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    const Words power = bit_cast<Words>(shifted) << 23;
    return {p * (r * r) + r, bit_cast<V>(bit_cast<Words>(V{} + 1.0f) + power)};
  }

  // For x <= 0 or NaN; below the least normal number, 0.
  D3PM_INLINE V exp(const V& x) {
    const SplitExp e = split_exp(x);
    return x < -87.3f ? V{} : e.scale * e.rest + e.scale;
  }

  // exp(x) - 1 for x <= 0 or NaN.
  D3PM_INLINE V expm1(const V& x) {
    const SplitExp e = split_exp(x);
    return x < -87.3f ? V{} - 1.0f : e.scale * e.rest + (e.scale - 1.0f);
  }

  // log(y) of y >= 0, zero, infinity, NaN and subnormal numbers included.
  D3PM_INLINE V log(const V& y) {
    const Bits small = y < 1.17549435e-38f;
    const V scaled = small ? y * 16777216.0f : y;
    const auto s = split_log<Math>(scaled - 1.0f, scaled);
    const V power = s.exponent - (small ? splat(24) : V{});
    const V finite = ((s.x - s.curve) + power * kLn2Low) + power * kLn2High;
    const V limit = y == 0.0f ? splat(-INFINITY) : y;  // inf and NaN are their own logarithm
    return (y > 0.0f) & (y < INFINITY) ? finite : limit;
  }

  D3PM_INLINE V log1p(const V& x) {
    const V y = 1.0f + x;
    const auto s = split_log<Math>(x, y);
    const V finite = ((s.x - s.curve) + s.exponent * kLn2Low) + s.exponent * kLn2High;
    return (y > 0.0f) & (y < INFINITY) ? finite : log(y);
  }

  D3PM_INLINE V phi(const V& x, const V& y) { return phi_in_float<Math>(x, y); }

  // phi(x1, y1) + phi(x2, y2) from one logarithm, for y1 y2 that cannot overflow.
  D3PM_INLINE V phi_pair(const V& x1, const V& y1, const V& x2, const V& y2) {
    const V sum = x1 + x2, product = x1 * x2;
    const auto s = split_log<Math>(sum + product, y1 * y2);
    const V linear = s.exponent == 0.0f ? -product : sum - s.x;
    return (linear - s.exponent * kLn2Low) - s.exponent * kLn2High + s.curve;
  }
  static constexpr float pair_limit =
      1e18f;  // a product of two below it, and above its inverse, is normal
};

template <>
struct Math<double> {
  using V = VectorOf<double>::Type;
  using Bits = VectorOf<double>::Bits;
  static constexpr double tiny = kTiny<double>;

  D3PM_INLINE V splat(double value) { return V{} + value; }

  D3PM_INLINE V select(const Bits& mask, const V& yes, const V& no) { return mask ? yes : no; }

  template <class Function>
  D3PM_INLINE V each(const V& x, Function function) {
    V result = {};
    for (int i = 0; i < kLanes<double>; ++i) result[i] = function(x[i]);
    return result;
  }

  D3PM_INLINE V exp(const V& x) {
    return each(x, [](double v) { return std::exp(v); });
  }

  D3PM_INLINE V expm1(const V& x) {
    return each(x, [](double v) { return std::expm1(v); });
  }

  D3PM_INLINE V log(const V& x) {
    return each(x, [](double v) { return std::log(v); });
  }

  D3PM_INLINE V log1p(const V& x) {
    return each(x, [](double v) { return std::log1p(v); });
  }

  D3PM_INLINE V phi(const V& x, const V& y) {
    const V near = phi_near_zero(x);
    return (x > -0.1) & (x < 0.1) ? near : x - log(y);
  }

  D3PM_INLINE V phi_pair(const V& x1, const V& y1, const V& x2, const V& y2) {
    return phi(x1, y1) + phi(x2, y2);
  }
  static constexpr double pair_limit = 1e150;
};
