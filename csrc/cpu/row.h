// Passes over a row of K logits that all kernels share. Rows of exponentials are padded with
// zeros to a whole number of vectors.

#include "simd.h"

// How many classes are summed in Real before the sum goes on in double: few enough for it to
// keep its digits.
constexpr int64_t kStretch = 1024;

// For `counted` where no sum is wanted.
constexpr auto kNothing = [](int64_t, const auto& v) { return v - v; };

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

  struct Exponentials {
    Real top, sum;
  };

  // Writes e_j = exp(logit_j - top) and returns top, the largest logit, and the sum of
  // counted(j, e), a vector of the classes from j on.
  template <class Counted>
  D3PM_MEMBER Exponentials exponentials(const Element* row, int64_t token, Real* e,
                                        const Counted& counted) const {
    const int64_t full = classes / kWidth * kWidth;
    const V last = full < classes ? tail(row, token, -INFINITY) : splat<Real>(-INFINITY);
    V tops = last;
    for (int64_t j = 0; j < full; j += kWidth) {
      const V l = read(row + j);
      tops = l > tops ? l : tops;
    }
    const Real top = max_lanes<Real>(tops);
    double sum = 0;
    for (int64_t begin = 0; begin < padded; begin += kStretch) {
      const int64_t end = std::min(padded, begin + kStretch), whole = std::min(full, end);
      V part = {};
      const auto add = [&](int64_t j, const V& l) __attribute__((always_inline)) {
        const V v = Math<Real>::exp(l - top);
        store(e + j, v);
        part += counted(j, v);
      };
      for (int64_t j = begin; j < whole; j += kWidth) add(j, read(row + j));
      if (whole < end) add(whole, last);
      sum += sum_lanes<Real>(part);
    }
    return {top, static_cast<Real>(sum)};
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
