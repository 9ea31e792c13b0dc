// Vectors of D3PM_VECTOR_BYTES bytes in the compiler's own vector types, and their mathematics.
// Included once for each target, inside its namespace; all is inlined into that target's code.

#define D3PM_INLINE static inline D3PM_MEMBER

template <class Real>
struct VectorOf;

template <>
struct VectorOf<float> {
  typedef float Type __attribute__((vector_size(D3PM_VECTOR_BYTES)));
  typedef int32_t Bits __attribute__((vector_size(D3PM_VECTOR_BYTES)));
  typedef uint32_t Words __attribute__((vector_size(D3PM_VECTOR_BYTES)));  // that may wrap around
  typedef double Wide __attribute__((vector_size(2 * D3PM_VECTOR_BYTES)));
  using Int = int32_t;
};

template <>
struct VectorOf<double> {
  typedef double Type __attribute__((vector_size(D3PM_VECTOR_BYTES)));
  typedef int64_t Bits __attribute__((vector_size(D3PM_VECTOR_BYTES)));
  using Wide = Type;
  using Int = int64_t;
};

template <class Real>
constexpr int kLanes = D3PM_VECTOR_BYTES / sizeof(Real);

template <class To, class From>
D3PM_INLINE To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast keeps the size");
  To to;
  __builtin_memcpy(&to, &from, sizeof(To));
  return to;
}

template <class V>
D3PM_INLINE V load(const void* from) {
  V to;
  __builtin_memcpy(&to, from, sizeof(V));
  return to;
}

template <class V>
D3PM_INLINE void store(void* to, const V& from) {
  __builtin_memcpy(to, &from, sizeof(V));
}

template <class Real, class Scalar>
D3PM_INLINE typename VectorOf<Real>::Type splat(Scalar value) {
  return typename VectorOf<Real>::Type{} + static_cast<Real>(value);
}

// A vector of [0, 1, 2, ...].
template <class Real>
D3PM_INLINE typename VectorOf<Real>::Bits iota() {
  typename VectorOf<Real>::Bits lanes = {};
  for (int i = 0; i < kLanes<Real>; ++i) lanes[i] = i;
  return lanes;
}

// The halves are folded as vectors down to 16 bytes, which the compiler turns into shuffles.
template <class Real, class Fold>
D3PM_INLINE Real fold_lanes(const typename VectorOf<Real>::Type& v, Fold fold) {
  Real lanes[kLanes<Real>];
  store(lanes, v);
  typedef Real Quarter __attribute__((vector_size(16)));
  constexpr int width = 16 / sizeof(Real);
  Quarter total = load<Quarter>(lanes);
  for (int i = width; i < kLanes<Real>; i += width) total = fold(total, load<Quarter>(lanes + i));
  Real result = total[0];
  for (int i = 1; i < width; ++i) result = fold(result, static_cast<Real>(total[i]));
  return result;
}

template <class Real>
D3PM_INLINE Real sum_lanes(const typename VectorOf<Real>::Type& v) {
  return fold_lanes<Real>(v, [](auto a, auto b) __attribute__((always_inline)) { return a + b; });
}

template <class Real>
D3PM_INLINE Real max_lanes(const typename VectorOf<Real>::Type& v) {
  return fold_lanes<Real>(
      v, [](auto a, auto b) __attribute__((always_inline)) { return a > b ? a : b; });
}

template <class Real>
D3PM_INLINE Real min_lanes(const typename VectorOf<Real>::Type& v) {
  return -max_lanes<Real>(-v);
}

#ifdef __has_builtin
#if __has_builtin(__builtin_shufflevector)
#define D3PM_HAS_SHUFFLE 1
#endif
#endif

#ifdef D3PM_HAS_SHUFFLE
// Lanes of `a` and `b` in turn, `stride` of them at a time: those of even turns, or of odd ones.
template <int stride, bool odd, class V, int... lane>
D3PM_INLINE V every_other(const V& a, const V& b, std::integer_sequence<int, lane...>) {
  constexpr int width = sizeof...(lane), from = odd ? stride : 0;
  return __builtin_shufflevector(a, b,
                                 (lane & stride ? width + lane - stride + from : lane + from)...);
}

template <class Real, int stride = 1>
D3PM_INLINE void transpose(typename VectorOf<Real>::Type* rows) {
  if constexpr (stride < kLanes<Real>) {
    const std::make_integer_sequence<int, kLanes<Real>> lanes;
    for (int i = 0; i < kLanes<Real>; ++i) {
      if (i & stride) continue;
      const auto a = rows[i], b = rows[i + stride];
      rows[i] = every_other<stride, false>(a, b, lanes);
      rows[i + stride] = every_other<stride, true>(a, b, lanes);
    }
    transpose<Real, 2 * stride>(rows);
  }
}
#else
template <class Real>
void transpose(typename VectorOf<Real>::Type* rows) {
  for (int i = 0; i < kLanes<Real>; ++i) {
    for (int j = 0; j < i; ++j) {
      const Real swapped = rows[i][j];
      rows[i][j] = rows[j][i];
      rows[j][i] = swapped;
    }
  }
}
#endif

// The splitting of log(y): y = 2^exponent (1 + x) with 1 + x in [sqrt(1/2), sqrt(2)), and
// curve = x - log(1 + x).
struct SplitLog {
  VectorOf<float>::Type exponent, x, curve;
};

template <class Real>
struct Math;

template <>
struct Math<float> {
  using V = VectorOf<float>::Type;
  using Bits = VectorOf<float>::Bits;
  using Words = VectorOf<float>::Words;
  static constexpr double tiny = 1e-30;  // below it a probability counts as zero
  static constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;

  D3PM_INLINE V splat(double value) { return V{} + static_cast<float>(value); }

  D3PM_INLINE V select(const Bits& mask, const V& yes, const V& no) { return mask ? yes : no; }

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

  // x: the exact y - 1, used where y needs no power of 2 taken out; y positive and normal.
  D3PM_INLINE SplitLog split(const V& x, const V& y) {
    const Words bits = bit_cast<Words>(y);
    const Bits power = bit_cast<Bits>(bits - 0x3f3504f3u) >> 23;
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
    return {__builtin_convertvector(power, V), rest, rest * rest * (0.5f - rest * p)};
  }

  // log(y) of y >= 0, zero, infinity, NaN and subnormal numbers included.
  D3PM_INLINE V log(const V& y) {
    const Bits small = y < 1.17549435e-38f;
    const V scaled = small ? y * 16777216.0f : y;
    const SplitLog s = split(scaled - 1.0f, scaled);
    const V power = s.exponent - (small ? splat(24) : V{});
    const V finite = ((s.x - s.curve) + power * kLn2Low) + power * kLn2High;
    const V limit = y == 0.0f ? splat(-INFINITY) : y;  // inf and NaN are their own logarithm
    return (y > 0.0f) & (y < INFINITY) ? finite : limit;
  }

  D3PM_INLINE V log1p(const V& x) {
    const V y = 1.0f + x;
    const SplitLog s = split(x, y);
    const V finite = ((s.x - s.curve) + s.exponent * kLn2Low) + s.exponent * kLn2High;
    return (y > 0.0f) & (y < INFINITY) ? finite : log(y);
  }

  // x - log(1 + x), given y = 1 + x to its own last digit.
  D3PM_INLINE V phi(const V& x, const V& y) {
    const SplitLog s = split(x, y);
    return ((x - s.x) - s.exponent * kLn2Low) - s.exponent * kLn2High + s.curve;
  }

  // phi(x1, y1) + phi(x2, y2) from one logarithm, for y1 y2 that cannot overflow.
  D3PM_INLINE V phi_pair(const V& x1, const V& y1, const V& x2, const V& y2) {
    const V sum = x1 + x2, product = x1 * x2;
    const SplitLog s = split(sum + product, y1 * y2);
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
  static constexpr double tiny = 1e-290;

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
    // Near 0: log(1 + x) = 2 atanh(z) with z = x / (2 + x).
    const V z = x / (2.0 + x), z2 = z * z;
    V p = z2 / 15.0 + 1.0 / 13.0;
    p = p * z2 + 1.0 / 11.0;
    p = p * z2 + 1.0 / 9.0;
    p = p * z2 + 1.0 / 7.0;
    p = p * z2 + 1.0 / 5.0;
    p = p * z2 + 1.0 / 3.0;
    const V near = z * (x - 2.0 * z2 * p);
    return (x > -0.1) & (x < 0.1) ? near : x - log(y);
  }

  D3PM_INLINE V phi_pair(const V& x1, const V& y1, const V& x2, const V& y2) {
    return phi(x1, y1) + phi(x2, y2);
  }
  static constexpr double pair_limit = 1e150;
};

// How an element type of the tensors is read and written; Real is what it is calculated in.
template <class Element>
struct Memory {
  using Real = Element;
  using V = typename VectorOf<Real>::Type;
  using Packed = V;

  D3PM_INLINE V widen(const Packed& packed) { return packed; }
  D3PM_INLINE Packed narrow(const V& v) { return v; }
};

struct PackedHalf {
  using Real = float;
  using V = VectorOf<float>::Type;
  using Words = VectorOf<float>::Words;
  typedef uint16_t Packed __attribute__((vector_size(D3PM_VECTOR_BYTES / 2)));
};

template <>
struct Memory<BFloat16> : PackedHalf {
  D3PM_INLINE V widen(const Packed& packed) {
    return bit_cast<V>(__builtin_convertvector(packed, Words) << 16);
  }

  D3PM_INLINE Packed narrow(const V& v) {
    const Words bits = bit_cast<Words>(v);
    const Words rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const Words quiet = Words{} + 0x7fc0u;
    return __builtin_convertvector(v == v ? rounded : quiet, Packed);
  }
};

template <>
struct Memory<Float16> : PackedHalf {
  D3PM_INLINE V widen(const Packed& packed) {
    const Words half = __builtin_convertvector(packed, Words);
    const Words magnitude = (half & 0x7fffu) << 13;
    const V finite = bit_cast<V>(magnitude) * 0x1p112f;
    const V special = bit_cast<V>(magnitude | 0x7f800000u);
    const V positive = magnitude >= (Words{} + (0x7c00u << 13)) ? special : finite;
    return bit_cast<V>(bit_cast<Words>(positive) | (half & 0x8000u) << 16);
  }

  D3PM_INLINE Packed narrow(const V& v) {
    const Words bits = bit_cast<Words>(v), magnitude = bits & 0x7fffffffu;
    const V size = bit_cast<V>(magnitude);
    const Words normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    const Words subnormal = bit_cast<Words>(size + 0.5f) - 0x3f000000u;
    const Words infinite = Words{} + 0x7c00u, quiet = Words{} + 0x7e00u;
    Words half = size < 0x1p-14f ? subnormal : normal;
    half = size >= 65520.0f ? infinite : half;
    half = v == v ? half : quiet;
    return __builtin_convertvector(half | ((bits >> 16) & 0x8000u), Packed);
  }
};

template <class Element>
D3PM_INLINE typename Memory<Element>::V read(const Element* from) {
  return Memory<Element>::widen(load<typename Memory<Element>::Packed>(from));
}

// All ones in the first `count` lanes.
template <class Real>
D3PM_INLINE typename VectorOf<Real>::Bits first_lanes(int64_t count) {
  return iota<Real>() <
         typename VectorOf<Real>::Bits{} + static_cast<typename VectorOf<Real>::Int>(count);
}

// The first `count` lanes, the others `fill`.
template <class Element>
D3PM_INLINE typename Memory<Element>::V read_some(const Element* from, int64_t count,
                                                  typename Memory<Element>::Real fill) {
  using Real = typename Memory<Element>::Real;
  Element lanes[kLanes<Real>] = {};
  for (int64_t i = 0; i < count; ++i) lanes[i] = from[i];
  return first_lanes<Real>(count) ? read(lanes) : splat<Real>(fill);
}

template <class Element>
D3PM_INLINE void write_all(Element* to, const typename Memory<Element>::V& v) {
  store(to, Memory<Element>::narrow(v));
}

template <class Element>
D3PM_INLINE void write_some(Element* to, const typename Memory<Element>::V& v, int64_t count) {
  Element lanes[kLanes<typename Memory<Element>::Real>];
  store(lanes, Memory<Element>::narrow(v));
  for (int64_t i = 0; i < count; ++i) to[i] = lanes[i];
}

template <class Element>
D3PM_INLINE void write_one(Element* to, typename Memory<Element>::Real value) {
  if constexpr (std::is_floating_point_v<Element>)
    *to = value;
  else
    write_some(to, splat<float>(value), 1);
}

template <class Element>
D3PM_INLINE typename Memory<Element>::Real read_one(const Element* from) {
  if constexpr (std::is_floating_point_v<Element>)
    return *from;
  else
    return read_some(from, 1, 0)[0];
}
