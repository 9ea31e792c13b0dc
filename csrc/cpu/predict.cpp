#include "kernels.h"
#include "target_headers.h"

#define D3PM_TARGET_FILE "predict_target.h"
#include "for_each_target.h"

namespace d3pm {

bool run(Type type, const Predict& call, int num_threads) {
  return run_rows(type, call.num_tokens, call.num_classes, num_threads,
                  [&](auto element, int64_t begin, int64_t end) {
                    D3PM_CALL_BEST(predict<decltype(element)>, call, begin, end);
                  });
}

}  // namespace d3pm
