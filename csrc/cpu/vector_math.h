// The mathematics of vectors; phi.h and powers.h have what CUDA shares.

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

  // For x <= 0 or NaN; below the least normal number, 0.
  D3PM_INLINE V exp(const V& x) {
    const auto e = split_exp<Math>(x);
    return x < -87.3f ? V{} : e.scale * (e.curve + e.rest) + e.scale;
  }

  // exp(x) - 1 for x <= 0 or NaN.
  D3PM_INLINE V expm1(const V& x) {
    const auto e = split_exp<Math>(x);
    return x < -87.3f ? V{} - 1.0f : e.scale * (e.curve + e.rest) + (e.scale - 1.0f);
  }

  D3PM_INLINE Powers<V> powers(const V& x) { return powers_in_float<Math>(x); }

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

  D3PM_INLINE Powers<V> powers(const V& x) {
    const auto turn = [](double v) { return v < -1 ? std::exp(v) : std::expm1(v); };
    return powers_in_double<Math>(x, each(x, turn));
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
