#include "kernels.h"
#include "subnormal.h"
#include "target_headers.h"

#define D3PM_TARGET_FILE "sparse_target.h"
#include "for_each_target.h"

namespace d3pm {
namespace {

template <class Real>
int64_t rows_at_once() {
  D3PM_CALL_BEST(sparse_rows_at_once<Real>);
}

template <class Real>
bool run_tile(const SparsePolynomial& call, int64_t begin, int64_t end) {
  [[maybe_unused]] const FlushSubnormals flush;
  D3PM_CALL_BEST(sparse_polynomial<Real>, call, begin, end);
}

template <class Real>
bool run_polynomial(const SparsePolynomial& call, int num_threads) {
  const int64_t width = rows_at_once<Real>(), entries = call.starts[call.num_classes];
  const int64_t tiles = (call.num_rows + width - 1) / width;
  const double cost = static_cast<double>(call.num_rows * call.num_terms * entries);
  return parallel(tiles, cost, num_threads, [&](int64_t begin, int64_t end) {
    return run_tile<Real>(call, begin * width, std::min(end * width, call.num_rows));
  });
}

// x after `jumps` draws from the rows of the matrix.
int64_t walk(const SparseQSample& call, int64_t token, int64_t jumps) {
  int64_t x = call.x[token];
  for (int64_t jump = 1; jump <= jumps; ++jump) {
    const double u = token_uniforms(call.random, call.num_tokens, token, jump).draw;
    const double* begin = call.cdf + call.starts[x];
    const double* end = call.cdf + call.starts[x + 1];
    x = call.targets[std::upper_bound(begin, end, u) - call.cdf];
  }
  return x;
}

}  // namespace

bool run(Type type, const SparsePolynomial& call, int num_threads) {
  return type == Type::float32 ? run_polynomial<float>(call, num_threads)
                               : run_polynomial<double>(call, num_threads);
}

bool run(const SparseQSample& call, int num_threads) {
  const double cost = 64.0 * static_cast<double>(call.num_rows);
  return parallel(call.num_rows, cost, num_threads, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const int64_t token = call.tokens[n];
      const double u = token_uniforms(call.random, call.num_tokens, token).draw;
      call.out[token] = walk(call, token, draw_base(u, call.jumps_cdf, call.num_counts));
    }
    return false;
  });
}

}  // namespace d3pm
