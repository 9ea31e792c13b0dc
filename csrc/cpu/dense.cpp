#include "kernels.h"
#include "subnormal.h"
#include "target_headers.h"

#define D3PM_TARGET_FILE "dense_target.h"
#include "for_each_target.h"

namespace d3pm {
namespace {

template <class Call>
bool run_dense(Type type, const Call& call, int num_threads) {
  const DenseRows& rows = call.rows;
  return run_rows(type, rows.num_rows, rows.num_classes, num_threads,
                  [&](auto element, int64_t begin, int64_t end) {
                    [[maybe_unused]] const FlushSubnormals flush;
                    D3PM_CALL_BEST(dense<decltype(element)>, call, begin, end);
                  });
}

}  // namespace

bool run(Type type, const DensePredict& call, int num_threads) {
  return run_dense(type, call, num_threads);
}

bool run(Type type, const DenseLoss& call, int num_threads) {
  return run_dense(type, call, num_threads);
}

bool run(Type type, const DensePosterior& call, int num_threads) {
  return run_dense(type, call, num_threads);
}

bool run(Type type, const DenseGradient& call, int num_threads) {
  return run_dense(type, call, num_threads);
}

bool run(Type type, const DenseSample& call, int num_threads) {
  return run_dense(type, call, num_threads);
}

bool run(Type type, const DenseQPosterior& call, int num_threads) {
  return run_dense(type, call, num_threads);
}

bool run(const DenseQSample& call, int num_threads) {
  const double cost = 16.0 * static_cast<double>(call.num_rows);
  return parallel(call.num_rows, cost, num_threads, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const int64_t token = call.tokens[n];
      const double* cdf = call.cdf + call.x[token] * call.num_classes;
      const Uniforms u = token_uniforms(call.random, call.num_tokens, token);
      call.out[token] = draw_base(u.draw, cdf, call.num_classes);
    }
    return false;
  });
}

}  // namespace d3pm
