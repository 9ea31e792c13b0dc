// Vectors of D3PM_VECTOR_BYTES bytes in the compiler's own vector types, and what is done with
// their lanes.

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

// All ones in the first `count` lanes.
template <class Real>
D3PM_INLINE typename VectorOf<Real>::Bits first_lanes(int64_t count) {
  return iota<Real>() <
         typename VectorOf<Real>::Bits{} + static_cast<typename VectorOf<Real>::Int>(count);
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
