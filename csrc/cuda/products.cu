// Cumulative products of matrices: rows do not meet, so a block takes one through all steps, a
// thread a column.

#include "device.h"

namespace d3pm::device {
namespace {

constexpr int kMostClasses = 64;

template <class Element, class Out>
__global__ void __launch_bounds__(kMostClasses) scan(const Scan call) {
  __shared__ double rows[2][kMostClasses];
  const int64_t classes = call.num_classes, size = classes * classes, column = threadIdx.x;
  const bool has_column = column < classes;
  const int64_t last = call.num_steps - 1, first = call.upstream ? last : 0;
  const int64_t step = call.upstream ? -size : size;
  const int64_t along = call.upstream ? 1 : classes, across = call.upstream ? classes : 1;
  const auto* const terms =
      static_cast<const Element*>(call.upstream ? call.upstream : call.matrices);
  const Element* matrix = static_cast<const Element*>(call.matrices) +
                          (call.upstream ? last : 1) * size + column * across;
  auto* const out = static_cast<Out*>(call.out);
  int64_t at = first * size + blockIdx.x * classes + column;
  double value = has_column ? static_cast<double>(terms[at]) : 0.0;
  for (int64_t n = 0;; ++n) {
    double* const row = rows[n % 2];
    row[column] = value;
    if (has_column) out[at] = static_cast<Out>(value);
    if (n == last) return;
    __syncthreads();
    at += step;
    if (has_column) {
      value = call.upstream ? static_cast<double>(terms[at]) : 0.0;
      for (int64_t k = 0; k < classes; ++k)
        value += row[k] * static_cast<double>(matrix[k * along]);
    }
    matrix += step;
  }
}

}  // namespace

template <class Element>
const char* launch(const Scan& call, void* on) {
  if (call.num_classes > kMostClasses) return "too many classes";
  const auto stream = static_cast<cudaStream_t>(on);
  const auto kernel = call.upstream ? scan<Element, double> : scan<Element, Element>;
  const int64_t threads = (call.num_classes + kWarp - 1) / kWarp * kWarp;
  D3PM_LAUNCH(kernel, call.num_classes, threads, 0, stream, call);
  return last_error();
}

template const char* launch<float>(const Scan&, void*);
template const char* launch<double>(const Scan&, void*);

}  // namespace d3pm::device
