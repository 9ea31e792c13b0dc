#include "kernels.h"
#include "target_headers.h"

#define D3PM_TARGET_FILE "posterior_target.h"
#include "for_each_target.h"

namespace d3pm {

bool run(Type type, const QPosterior& call, int num_threads) {
  return run_rows(type, call.chain, num_threads, [&](auto element, int64_t begin, int64_t end) {
    D3PM_CALL_BEST(q_posterior<decltype(element)>, call, begin, end);
  });
}

bool run(Type type, const PPosterior& call, int num_threads) {
  return run_rows(type, call.chain, num_threads, [&](auto element, int64_t begin, int64_t end) {
    D3PM_CALL_BEST(p_posterior<decltype(element)>, call, begin, end);
  });
}

}  // namespace d3pm
