// Passes over a row of K logits that all kernels share. Rows of exponentials are padded with
// zeros to a whole number of vectors.

#include "simd.h"

// How many classes are summed in Real before the sum goes on in double: few enough for it to
// keep its digits.
constexpr int64_t kStretch = 1024;

// What a pass over vectors calls with the number of each: it has the same vector of another row
// on its way into the cache when that row's turn comes.
template <class Element, bool kToWrite>
struct Ahead {
  const Element* row;
  const int64_t stride = kLanes<typename Memory<Element>::Real>;

  D3PM_MEMBER void operator()(int64_t v) const {
    __builtin_prefetch(row + v * stride, kToWrite, 2);
  }
};
struct NothingAhead {
  D3PM_MEMBER void operator()(int64_t) const {}
};

// Turns logits into e = exp(logit - top), in place, and returns their sum, lane by lane.
template <class Real, class Next = NothingAhead>
D3PM_INLINE typename VectorOf<Real>::Type exponentiate(Real* e, int64_t count,
                                                       const typename VectorOf<Real>::Type& top,
                                                       const Next& next = {}) {
  using V = typename VectorOf<Real>::Type;
  V sums[4] = {};
  const auto turn = [&](int64_t v, V& sum) D3PM_MEMBER {
    next(v);
    const V x = Math<Real>::exp(load<V>(e + v * kLanes<Real>) - top);
    store(e + v * kLanes<Real>, x);
    sum += x;
  };
  int64_t v = 0;
  for (; v + 4 <= count; v += 4)
    for (int i = 0; i < 4; ++i) turn(v + i, sums[i]);
  for (; v < count; ++v) turn(v, sums[0]);
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

template <class Element>
struct RowReader {
  using Real = typename Memory<Element>::Real;
  using V = typename VectorOf<Real>::Type;
  static constexpr int kWidth = kLanes<Real>;

  const int64_t classes, whole, padded, num_tokens;  // whole: the classes in full vectors
  const int64_t forbidden;                           // a place in the row, or negative

  RowReader(int64_t num_tokens, int64_t num_classes, int64_t forbidden = -1)
      : classes(num_classes),
        whole(classes / kWidth * kWidth),
        padded((classes + kWidth - 1) / kWidth * kWidth),
        num_tokens(num_tokens),
        forbidden(forbidden < classes ? forbidden : -1) {}

  explicit RowReader(const Chain& chain)
      : RowReader(chain.num_tokens, chain.num_classes, chain.forbidden) {}

  // The row's last vector, where it is not whole. Its spare lanes may be read from the rows
  // behind, as long as there are enough of them.
  V tail(const Element* row, int64_t token, Real fill) const {
    const int64_t start = padded - kWidth, count = classes - start;
    if ((num_tokens - token) * classes < padded) return read_some(row + start, count, fill);
    return first_lanes<Real>(count) ? read(row + start) : splat<Real>(fill);
  }

  // Copies a row, its last vector, where it is not whole, filled up with -inf and to `last`, and
  // -inf in place of what is forbidden. Returns the largest entry.
  D3PM_MEMBER Real copy(const Element* row, int64_t token, Real* to, Real* last) const {
    V tops[4];
    for (V& top : tops) top = splat<Real>(-INFINITY);
    const auto take = [&](const V& l, Real* at, V& top) D3PM_MEMBER {
      store(at, l);
      top = l > top ? l : top;
    };
    int64_t j = 0;
    for (; j + 4 * kWidth <= whole; j += 4 * kWidth)
      for (int i = 0; i < 4; ++i) take(read(row + j + i * kWidth), to + j + i * kWidth, tops[i]);
    for (; j < whole; j += kWidth) take(read(row + j), to + j, tops[0]);
    if (whole < classes) take(tail(row, token, -INFINITY), last, tops[1]);
    for (int i = 1; i < 4; ++i) tops[0] = tops[i] > tops[0] ? tops[i] : tops[0];
    const Real top = max_lanes<Real>(tops[0]);
    return forbidden < 0 ? top : forbid(to, last, top);
  }

  // Writes e_j = exp(logit_j - top), padded with zeros, and returns top, the largest logit.
  D3PM_MEMBER Real exponentials(const Element* row, int64_t token, Real* e) const {
    const Real top = copy(row, token, e, e + whole);
    exponentiate(e, padded / kWidth, splat<Real>(top));
    return top;
  }

  // The sum of value(j), a vector, over a padded row.
  template <class Value>
  D3PM_MEMBER Real sum_of(const Value& value) const {
    double total = 0;
    for (int64_t begin = 0; begin < padded; begin += kStretch) {
      V part = {};
      for (int64_t j = begin; j < std::min(padded, begin + kStretch); j += kWidth) part += value(j);
      total += sum_lanes<Real>(part);
    }
    return static_cast<Real>(total);
  }

  // Puts -inf in place of what is forbidden in a row that copy() has made; returns the largest
  // entry that is left.
  Real forbid(Real* to, Real* last, Real top) const {
    Real& logit = forbidden < whole ? to[forbidden] : last[forbidden - whole];
    const bool may_be_largest = !(std::exchange(logit, -INFINITY) < top);
    if (!may_be_largest) return top;
    V largest = whole < classes ? load<V>(last) : splat<Real>(-INFINITY);
    for (int64_t j = 0; j < whole; j += kWidth) {
      const V l = load<V>(to + j);
      largest = l > largest ? l : largest;
    }
    return max_lanes<Real>(largest);
  }

  // Writes value(j) to the row; the last vector overlaps the one before it, if there is one.
  template <class Value>
  D3PM_MEMBER void write(Element* row, const Value& value) const {
    int64_t j = 0;
    for (; j + kWidth <= classes; j += kWidth) write_all(row + j, value(j));
    if (j == classes) return;
    if (j > 0)
      write_all(row + classes - kWidth, value(classes - kWidth));
    else
      write_some(row, value(0), classes);
  }
};
