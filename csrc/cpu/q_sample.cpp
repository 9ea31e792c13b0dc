#include "kernels.h"
#include "target_headers.h"

#define D3PM_TARGET_FILE "q_sample_target.h"
#include "for_each_target.h"

namespace d3pm {

bool run(const QSample& call, int num_threads) {
  const int64_t size = call.chain.num_tokens;
  return parallel(size, 16.0 * static_cast<double>(size), num_threads,
                  [&](int64_t begin, int64_t end) { D3PM_CALL_BEST(q_sample, call, begin, end); });
}

}  // namespace d3pm
