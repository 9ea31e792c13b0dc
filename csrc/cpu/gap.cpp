#include "../gap.h"

#include "target_headers.h"

#define D3PM_TARGET_FILE "gap_target.h"
#include "for_each_target.h"

namespace d3pm {

bool run(Type type, const Gap& call, int num_threads) {
  return run_rows(type, call.num_tokens, call.num_classes, num_threads,
                  [&](auto element, int64_t begin, int64_t end) {
                    D3PM_CALL_BEST(gap<decltype(element)>, call, begin, end);
                  });
}

}  // namespace d3pm
