#include "kernels.h"

#define D3PM_TARGET_FILE "shaped_target.h"
#include "for_each_target.h"

namespace d3pm {
namespace {

struct BestShapedLogits {
  template <class Element>
  static bool call(const ShapedLogits& call, int64_t begin, int64_t end) {
    D3PM_CALL_BEST(shaped_logits<Element>, call, begin, end);
  }
};

}  // namespace

bool run(Type type, const ShapedLogits& call) {
  return run_rows<BestShapedLogits>(type, call, call.num_tokens, call.num_classes,
                                    call.num_threads);
}

}  // namespace d3pm
