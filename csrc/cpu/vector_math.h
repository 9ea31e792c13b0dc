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

  template <class Yes, class No>
  D3PM_INLINE V where(const Bits& mask, const Yes& yes, const No& no) {
    return mask ? yes() : no();
  }

  D3PM_INLINE V reciprocal(const V& x) { return 1 / x; }

  D3PM_INLINE V to_real(const Ints& n) { return __builtin_convertvector(n, V); }

  // For x <= 0 or NaN; below the least normal number, 0.
  D3PM_INLINE V exp(const V& x) {
#if D3PM_VECTOR_BYTES == 64
    // 2^(n / 16) exp(r) with |r| < 0.022; the low bits of `shifted` are n.
    const V roots = {1.0f,        1.04427378f, 1.09050773f, 1.13878863f, 1.18920712f, 1.24185781f,
                     1.29683955f, 1.35425555f, 1.41421356f, 1.47682615f, 1.54221083f, 1.61049033f,
                     1.68179283f, 1.75625216f, 1.83400809f, 1.91520656f};
    const V shifted = x * 1.44269504f + 786432.0f;
    const V power = shifted - 786432.0f;
    const V r = x - power * 0.693147181f;
    const V p = (r * 0.166666667f + 0.5f) * (r * r) + r;
    const V root = _mm512_maskz_permutexvar_ps(0xffff, bit_cast<__m512i>(shifted), roots);
    const V scale = _mm512_maskz_scalef_ps(0xffff, root, power);
    const auto in_range = _mm512_cmp_ps_mask(x, splat(-87.3), _CMP_NLT_UQ);
    return _mm512_maskz_fmadd_ps(in_range, scale, p, scale);
#else
    const auto e = split_exp<Math>(x);
    return x < -87.3f ? V{} : e.scale * (e.curve + e.rest) + e.scale;
#endif
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

  D3PM_INLINE V rough_log(const V& y) { return log(y); }

  D3PM_INLINE V log1p(const V& x) {
    const V y = 1.0f + x;
    const auto s = split_log<Math>(x, y);
    const V finite = ((s.x - s.curve) + s.exponent * kLn2Low) + s.exponent * kLn2High;
    return (y > 0.0f) & (y < INFINITY) ? finite : log(y);
  }

  D3PM_INLINE V phi(const V& x, const V& y) { return phi_in_float<Math>(x, y); }

  // Given u = product - 1 and the sum of its factors less 1, which differ by `beyond`: the sum of
  // phi of these, or where `logs` minus the sum of their logarithms.
  D3PM_INLINE V phi_of_product(const V& sum, const V& beyond, const Bits& logs) {
    const V u = sum + beyond;
    const auto s = split_log<Math>(u, 1.0f + u);
    const V near = s.exponent == 0.0f ? -beyond : sum - s.x;
    const V linear = logs ? -s.x : near;
    return (linear - s.exponent * kLn2Low) - s.exponent * kLn2High + s.curve;
  }
  static constexpr float product_limit = 1e9f;  // four numbers below it have a product in range

  // The logarithm of a product of any number of factors from 1 to product_limit^4.
  struct ProductLog {
    V mantissa;
    Bits exponent;

    D3PM_MEMBER ProductLog() : mantissa(splat(1)), exponent{} {}
    D3PM_MEMBER void multiply(const V& y) {
      const Words bits = bit_cast<Words>(mantissa * y);
      const Bits power = bit_cast<Bits>(bits - 0x3f3504f3u) >> 23;
      mantissa = bit_cast<V>(bits - (bit_cast<Words>(power) << 23));
      exponent += power;
    }
    D3PM_MEMBER V value() const {
      const V power = to_real(exponent);
      return (Math::log(mantissa) + power * kLn2Low) + power * kLn2High;
    }
  };

  // For normal y whose reciprocal is normal.
  D3PM_INLINE V reciprocal_of_normal(const V& y) {
#if D3PM_VECTOR_BYTES == 64
    const V r = _mm512_maskz_rcp14_ps(0xffff, y);
    return r * (2.0f - y * r);
#else
    return 1.0f / y;
#endif
  }
};

template <>
struct Math<double> {
  using V = VectorOf<double>::Type;
  using Bits = VectorOf<double>::Bits;
  static constexpr double tiny = kTiny<double>;

  D3PM_INLINE V splat(double value) { return V{} + value; }

  D3PM_INLINE V select(const Bits& mask, const V& yes, const V& no) { return mask ? yes : no; }

  template <class Yes, class No>
  D3PM_INLINE V where(const Bits& mask, const Yes& yes, const No& no) {
    return mask ? yes() : no();
  }

  D3PM_INLINE V reciprocal(const V& x) { return 1 / x; }

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

  D3PM_INLINE V rough_log(const V& y) { return log(y); }

  D3PM_INLINE V log1p(const V& x) {
    return each(x, [](double v) { return std::log1p(v); });
  }

  D3PM_INLINE V phi(const V& x, const V& y) {
    const V near = phi_near_zero(x);
    return (x > -0.1) & (x < 0.1) ? near : x - log(y);
  }

  D3PM_INLINE V phi_of_product(const V& sum, const V& beyond, const Bits& logs) {
    const V u = sum + beyond, log_of = log1p(u);
    const V near = u < 0.2 ? phi_near_zero(u) - beyond : sum - log_of;
    return logs ? -log_of : near;
  }
  static constexpr double product_limit = 1e75;

  struct ProductLog {
    V sum;

    D3PM_MEMBER ProductLog() : sum{} {}
    D3PM_MEMBER void multiply(const V& y) { sum += Math::log(y); }
    D3PM_MEMBER V value() const { return sum; }
  };

  D3PM_INLINE V reciprocal_of_normal(const V& y) { return 1.0 / y; }
};
