// Passes over a row of K logits that all kernels share. Rows of exponentials are padded with
// zeros to a whole number of vectors.

#include "simd.h"

// How many classes are summed in Real before the sum goes on in double: few enough for it to
// keep its digits.
constexpr int64_t kStretch = 1024;

template <class Element>
struct RowReader {
  using Real = typename Memory<Element>::Real;
  using V = typename VectorOf<Real>::Type;
  static constexpr int kWidth = kLanes<Real>;

  const int64_t classes, padded, num_tokens;

  explicit RowReader(const Chain& chain)
      : classes(chain.num_classes),
        padded((classes + kWidth - 1) / kWidth * kWidth),
        num_tokens(chain.num_tokens) {}

  // The row's last vector, where it is not whole. Its spare lanes may be read from the rows
  // behind, as long as there are enough of them.
  V tail(const Element* row, int64_t token, Real fill) const {
    const int64_t start = padded - kWidth, count = classes - start;
    if ((num_tokens - token) * classes < padded) return read_some(row + start, count, fill);
    return first_lanes<Real>(count) ? read(row + start) : splat<Real>(fill);
  }

  // Writes exp(logit - top) and returns top, the largest logit.
  Real exponentials(const Element* row, int64_t token, Real* e) const {
    const int64_t full = classes / kWidth * kWidth;
    const V lowest = splat<Real>(-INFINITY);
    const V last = full < classes ? tail(row, token, -INFINITY) : lowest;
    V top = last;
    for (int64_t j = 0; j < full; j += kWidth) {
      const V l = read(row + j);
      top = l > top ? l : top;
    }
    const Real max = max_lanes<Real>(top);
    for (int64_t j = 0; j < full; j += kWidth) store(e + j, Math<Real>::exp(read(row + j) - max));
    if (full < classes) store(e + full, Math<Real>::exp(last - max));
    return max;
  }

  // The sum of value(j), a vector, over a padded row.
  template <class Value>
  Real sum_of(const Value& value) const {
    double total = 0;
    for (int64_t begin = 0; begin < padded; begin += kStretch) {
      V part = {};
      for (int64_t j = begin; j < std::min(padded, begin + kStretch); j += kWidth) part += value(j);
      total += sum_lanes<Real>(part);
    }
    return static_cast<Real>(total);
  }

  // Writes value(j) to the row; the last vector overlaps the one before it, if there is one.
  template <class Value>
  void write(Element* row, const Value& value) const {
    int64_t j = 0;
    for (; j + kWidth <= classes; j += kWidth) write_all(row + j, value(j));
    if (j == classes) return;
    if (j > 0)
      write_all(row + classes - kWidth, value(classes - kWidth));
    else
      write_some(row, value(0), classes);
  }
};
