// Numbers as bits: single numbers and vectors of them. Included inside the namespace of each
// target, so without a guard.

template <class To, class From>
D3PM_HOST_DEVICE inline D3PM_MEMBER To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast keeps the size");
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

// The bits of a float rounded to bfloat16, ties to even; all NaN are one.
template <class Words, class V>
D3PM_HOST_DEVICE inline D3PM_MEMBER Words bfloat16_bits(const V& v) {
  const Words bits = bit_cast<Words>(v);
  const Words rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const Words quiet = Words{} + 0x7fc0u;
  return v == v ? rounded : quiet;
}
