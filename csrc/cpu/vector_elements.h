// Elements of tensors, of any type, read and written as vectors.

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
    return __builtin_convertvector(bfloat16_bits<Words>(v), Packed);
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
