// phi(x) = x - log(1 + x), and the splitting of a logarithm in float, of single numbers and vectors
// of them. Included inside the namespace of each target, behind bits.h, so without a guard.
//
// Math says what a float is here: V, a number or a vector of them; Words and Ints, as many unsigned
// and signed integers of 32 bits; to_real(Ints), which gives V.

// The two sum to ln 2; an exponent times the first is exact.
constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;

// Of log(y): y = 2^exponent (1 + x) with 1 + x in [sqrt(1/2), sqrt(2)), and
// curve = x - log(1 + x).
template <class V>
struct SplitLog {
  V exponent, x, curve;
};

// x: the exact y - 1, used where y needs no power of 2 taken out; y positive and normal.
template <class Math>
D3PM_HOST_DEVICE inline D3PM_MEMBER SplitLog<typename Math::V> split_log(
    const typename Math::V& x, const typename Math::V& y) {
  using V = typename Math::V;
  using Words = typename Math::Words;
  using Ints = typename Math::Ints;
  const Words bits = bit_cast<Words>(y);
  const Ints power = bit_cast<Ints>(bits - 0x3f3504f3u) >> 23;
  const V mantissa = bit_cast<V>(bits - (bit_cast<Words>(power) << 23));
  const V rest = power == 0 ? x : mantissa - 1.0f;
  V p = rest * 7.0376836292e-2f - 1.1514610310e-1f;
  p = p * rest + 1.1676998740e-1f;
  p = p * rest - 1.2420140846e-1f;
  p = p * rest + 1.4249322787e-1f;
  p = p * rest - 1.6668057665e-1f;
  p = p * rest + 2.0000714765e-1f;
  p = p * rest - 2.4999993993e-1f;
  p = p * rest + 3.3333331174e-1f;
  return {Math::to_real(power), rest, rest * rest * (0.5f - rest * p)};
}

// phi(x) in float, given y = 1 + x to its own last digit, positive and normal.
template <class Math>
D3PM_HOST_DEVICE inline D3PM_MEMBER typename Math::V phi_in_float(const typename Math::V& x,
                                                                  const typename Math::V& y) {
  const auto s = split_log<Math>(x, y);
  return ((x - s.x) - s.exponent * kLn2Low) - s.exponent * kLn2High + s.curve;
}

// phi(x) in double for |x| < 0.2: log(1 + x) = 2 atanh(z) with z = x / (2 + x).
template <class V>
D3PM_HOST_DEVICE inline D3PM_MEMBER V phi_near_zero(const V& x) {
  const V z = x / (2.0 + x), z2 = z * z;
  V p = z2 / 15.0 + 1.0 / 13.0;
  p = p * z2 + 1.0 / 11.0;
  p = p * z2 + 1.0 / 9.0;
  p = p * z2 + 1.0 / 7.0;
  p = p * z2 + 1.0 / 5.0;
  p = p * z2 + 1.0 / 3.0;
  return z * (x - 2.0 * z2 * p);
}
