#include "../p_sample_token.h"
#include "kernels.h"
#include "target_headers.h"

#define D3PM_TARGET_FILE "p_sample_target.h"
#include "for_each_target.h"

namespace d3pm {

bool run(Type type, const PSample& call, const Shaping& shaping, int num_threads) {
  return run_rows(type, call.chain, num_threads, [&](auto element, int64_t begin, int64_t end) {
    D3PM_CALL_BEST(p_sample<decltype(element)>, call, shaping, begin, end);
  });
}

}  // namespace d3pm
