#include "../sampling.h"
#include "kernels.h"

#define D3PM_TARGET_FILE "q_sample_target.h"
#include "for_each_target.h"

namespace d3pm {
namespace {

bool best_q_sample(const QSample& call, int64_t begin, int64_t end) {
  D3PM_CALL_BEST(q_sample, call, begin, end);
}

}  // namespace

bool run(const QSample& call) {
  const int64_t size = call.chain.num_tokens;
  return parallel(size, 16.0 * static_cast<double>(size), call.num_threads,
                  [&](int64_t begin, int64_t end) { return best_q_sample(call, begin, end); });
}

}  // namespace d3pm
