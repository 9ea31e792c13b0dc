#include "kernels.h"
#include "subnormal.h"
#include "target_headers.h"

#define D3PM_TARGET_FILE "dense_target.h"
#include "for_each_target.h"

namespace d3pm {
namespace {

template <class Call>
bool run_dense(Type type, const Call& call) {
  const DenseRows& rows = call.rows;
  return run_rows(type, rows.num_rows, rows.num_classes, rows.num_threads,
                  [&](auto element, int64_t begin, int64_t end) {
                    [[maybe_unused]] const FlushSubnormals flush;
                    D3PM_CALL_BEST(dense<decltype(element)>, call, begin, end);
                  });
}

}  // namespace

bool run(Type type, const DensePredict& call) { return run_dense(type, call); }

bool run(Type type, const DenseLoss& call) { return run_dense(type, call); }

bool run(Type type, const DensePosterior& call) { return run_dense(type, call); }

bool run(Type type, const DenseGradient& call) { return run_dense(type, call); }

bool run(Type type, const DenseSample& call) { return run_dense(type, call); }

bool run(Type type, const DenseQPosterior& call) { return run_dense(type, call); }

bool run(const DenseQSample& call) {
  const double cost = 16.0 * static_cast<double>(call.num_rows);
  return parallel(call.num_rows, cost, call.num_threads, [&](int64_t begin, int64_t end) {
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
