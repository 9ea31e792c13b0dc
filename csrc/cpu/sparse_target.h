// Polynomials of a sparse matrix applied to rows, for one set of vector instructions.
//
// As many rows as a vector has lanes go through together, transposed: each entry of the matrix
// is then one vector read and one multiplication. Nothing is subtracted, so an entry of the
// result is as accurate as the largest of its summands, however small it is.

#include "row.h"

template <class Real>
class SparsePolynomialTile {
  using V = typename VectorOf<Real>::Type;
  static constexpr int kWidth = kLanes<Real>;

 public:
  explicit SparsePolynomialTile(const SparsePolynomial& call)
      : call_(call),
        classes_(call.num_classes),
        sum_(classes_ * kWidth),
        power_(classes_ * kWidth),
        next_(classes_ * kWidth) {}

  // Rows [first, first + count), count <= kWidth.
  void operator()(int64_t first, int64_t count) {
    Real *sum = sum_.data(), *power = power_.data(), *next = next_.data();
    transpose_in(first, count, power);
    const V start = splat<Real>(call_.terms[0]);
    for (int64_t j = 0; j < classes_; ++j)
      store(sum + j * kWidth, start * load<V>(power + j * kWidth));
    for (int64_t n = 1; n < call_.num_terms; ++n) {
      multiply(power, next, sum, splat<Real>(call_.terms[n]));
      std::swap(power, next);
    }
    transpose_out(first, count, sum);
  }

 private:
  // next = power M; sum += term next.
  D3PM_MEMBER void multiply(const Real* power, Real* next, Real* sum, const V& term) const {
    const Real* weights = static_cast<const Real*>(call_.weights);
    for (int64_t j = 0; j < classes_; ++j) {
      V even = {}, odd = {};
      int64_t e = call_.starts[j];
      const int64_t end = call_.starts[j + 1];
      for (; e + 1 < end; e += 2) {
        even += splat<Real>(weights[e]) * load<V>(power + int64_t{call_.sources[e]} * kWidth);
        odd +=
            splat<Real>(weights[e + 1]) * load<V>(power + int64_t{call_.sources[e + 1]} * kWidth);
      }
      if (e < end)
        even += splat<Real>(weights[e]) * load<V>(power + int64_t{call_.sources[e]} * kWidth);
      even += odd;
      store(next + j * kWidth, even);
      store(sum + j * kWidth, load<V>(sum + j * kWidth) + term * even);
    }
  }

  // By squares of kWidth: rows that are a power of two apart would push each other out.
  template <class Body>
  void each_square(const Body& body) const {
    for (int64_t j = 0; j < classes_; j += kWidth) body(j, std::min<int64_t>(classes_ - j, kWidth));
  }

  void transpose_in(int64_t first, int64_t count, Real* tile) const {
    const Real* v = static_cast<const Real*>(call_.v) + first * classes_;
    each_square([&](int64_t j, int64_t width) {
      Real square[kWidth][kWidth] = {};
      for (int64_t i = 0; i < count; ++i) std::copy_n(v + i * classes_ + j, width, square[i]);
      for (int64_t c = 0; c < width; ++c)
        for (int64_t i = 0; i < kWidth; ++i) tile[(j + c) * kWidth + i] = square[i][c];
    });
  }

  void transpose_out(int64_t first, int64_t count, const Real* tile) const {
    Real* out = static_cast<Real*>(call_.out) + first * classes_;
    each_square([&](int64_t j, int64_t width) {
      Real square[kWidth][kWidth];
      for (int64_t c = 0; c < width; ++c)
        for (int64_t i = 0; i < count; ++i) square[i][c] = tile[(j + c) * kWidth + i];
      for (int64_t i = 0; i < count; ++i) std::copy_n(square[i], width, out + i * classes_ + j);
    });
  }

  const SparsePolynomial& call_;
  const int64_t classes_;
  const Scratch<Real> sum_, power_, next_;
};

template <class Real>
static int64_t sparse_rows_at_once() {
  return kLanes<Real>;
}

template <class Real>
static bool sparse_polynomial(const SparsePolynomial& call, int64_t begin, int64_t end) {
  SparsePolynomialTile<Real> tile(call);
  for (int64_t n = begin; n < end; n += kLanes<Real>)
    tile(n, std::min<int64_t>(end - n, kLanes<Real>));
  return false;
}
