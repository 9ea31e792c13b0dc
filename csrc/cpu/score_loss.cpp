#include "../score_token.h"
#include "kernels.h"
#include "target_headers.h"

#define D3PM_TARGET_FILE "score_loss_target.h"
#include "for_each_target.h"

namespace d3pm {

bool run(Type type, const ScoreLoss& call, int num_threads) {
  const Chain& chain = call.of.chain;
  return run_rows(type, chain, num_threads, [&](auto element, int64_t begin, int64_t end) {
    D3PM_CALL_BEST(score_loss<decltype(element)>, call, begin, end);
  });
}

}  // namespace d3pm
