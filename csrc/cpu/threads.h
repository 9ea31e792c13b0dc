// How a call's tokens are shared out to threads.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "../calls.h"
#include "../elements.h"

namespace d3pm {

// Memory of one thread's own, aligned for any vector.
template <class Real>
class Scratch {
 public:
  explicit Scratch(int64_t size) : memory_(new Real[size + kAlign / sizeof(Real)]) {
    void* start = memory_.get();
    size_t space = size * sizeof(Real) + kAlign;
    data_ = static_cast<Real*>(std::align(kAlign, size * sizeof(Real), start, space));
  }
  Real* data() const { return data_; }

 private:
  static constexpr size_t kAlign = 64;
  std::unique_ptr<Real[]> memory_;
  Real* data_;
};

// Calls body(begin, end) on pieces of [0, size) from several threads and returns whether any
// call did. `cost` estimates the elements that the whole touches.
template <class Body>
bool parallel(int64_t size, double cost, int num_threads, const Body& body) {
  if (size == 0) return false;
  const int threads = cost < 32768 ? 1 : num_threads;
  const int64_t pieces = threads == 1 ? 1 : std::min<int64_t>(size, threads * 8);
  int bad = 0;
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) schedule(dynamic) reduction(| : bad) if (threads > 1)
#endif
  for (int64_t piece = 0; piece < pieces; ++piece)
    bad |= body(size * piece / pieces, size * (piece + 1) / pieces);
  return bad != 0;
}

// Calls body(element, begin, end) on rows of elements of a type.
template <class Body>
bool run_rows(Type type, int64_t num_rows, int64_t num_classes, int num_threads, const Body& body) {
  const double cost = static_cast<double>(num_rows) * static_cast<double>(num_classes);
  return with_element(type, [&](auto element) {
    return parallel(num_rows, cost, num_threads,
                    [&](int64_t begin, int64_t end) { return body(element, begin, end); });
  });
}

template <class Body>
bool run_rows(Type type, const Chain& chain, int num_threads, const Body& body) {
  return run_rows(type, chain.num_tokens, chain.num_classes, num_threads, body);
}

}  // namespace d3pm
