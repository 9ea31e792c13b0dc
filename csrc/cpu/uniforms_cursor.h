// The random numbers of tokens that come in rising order, made for many at once.

typedef uint32_t Words __attribute__((vector_size(D3PM_VECTOR_BYTES)));
constexpr int kWords = D3PM_VECTOR_BYTES / sizeof(uint32_t);

#if D3PM_VECTOR_BYTES > 16
typedef uint64_t Products __attribute__((vector_size(D3PM_VECTOR_BYTES)));

// The compiler's own vectors have no product of 32-bit numbers that is twice as long.
D3PM_INLINE Products multiply_even(const Products& a, const Products& b) {
#if D3PM_VECTOR_BYTES == 64  // masked, because GCC 12 warns of the plain one
  return bit_cast<Products>(
      _mm512_maskz_mul_epu32(0xff, bit_cast<__m512i>(a), bit_cast<__m512i>(b)));
#else
  return bit_cast<Products>(_mm256_mul_epu32(bit_cast<__m256i>(a), bit_cast<__m256i>(b)));
#endif
}

D3PM_INLINE void multiply(uint32_t a, const Words& b, Words& high, Words& low) {
  constexpr uint64_t kLow = 0xffffffff;
  const Products as = Products{} + a, bs = bit_cast<Products>(b);
  const Products even = multiply_even(as, bs), odd = multiply_even(as, bs >> 32);
  high = bit_cast<Words>(even >> 32 | (odd & ~kLow));
  low = bit_cast<Words>((even & kLow) | odd << 32);
}
#else
D3PM_INLINE void multiply(uint32_t a, const Words& b, Words& high, Words& low) {
  uint32_t lanes[kWords], highs[kWords], lows[kWords];
  store(lanes, b);
  for (int i = 0; i < kWords; ++i) d3pm::multiply(a, lanes[i], highs[i], lows[i]);
  high = load<Words>(highs);
  low = load<Words>(lows);
}
#endif

#include "../philox.h"

class UniformsCursor {
 public:
  UniformsCursor(const Random& random, int64_t num_tokens)
      : random_(random), num_tokens_(num_tokens), positions_(num_tokens / random.num_seeds) {}

  Uniforms operator()(int64_t token) {
    if (token >= first_ + kTokens) make(token);
    const int64_t i = token - first_;
    return {to_unit(words_[0][i], words_[1][i]), to_unit(words_[2][i], words_[3][i])};
  }

 private:
  static constexpr int64_t kTokens = 64;

  void make(int64_t first) {
    first_ = first;
    const int64_t count = std::min(kTokens, num_tokens_ - first);
    int64_t item = first / positions_, position = first % positions_;
    for (int64_t i = 0; i < count; ++item, position = 0) {
      const auto seed = static_cast<uint64_t>(random_.seeds[item]);
      for (const int64_t end = std::min(count, i + positions_ - position); i < end; ++i) {
        const int64_t of_item = random_.position_offset + position++;
        split(static_cast<uint64_t>(of_item), words_[0][i], words_[1][i]);
        split(seed, keys_[0][i], keys_[1][i]);
      }
    }
    uint32_t step[2];
    split(static_cast<uint64_t>(random_.step), step[0], step[1]);
    for (int64_t i = 0; i < count; i += kWords) {
      Words c[4] = {load<Words>(words_[0] + i), load<Words>(words_[1] + i), Words{} + step[0],
                    Words{} + step[1]};
      philox(c, load<Words>(keys_[0] + i), load<Words>(keys_[1] + i));
      for (int word = 0; word < 4; ++word) store(words_[word] + i, c[word]);
    }
  }

  const Random& random_;
  const int64_t num_tokens_, positions_;
  int64_t first_ = -kTokens;
  alignas(64) uint32_t words_[4][kTokens] = {}, keys_[2][kTokens] = {};
};
