#include "kernels.h"

#define D3PM_TARGET_FILE "loss_target.h"
#include "for_each_target.h"

namespace d3pm {
namespace {

struct BestLoss {
  template <class Element>
  static bool call(const Loss& call, int64_t begin, int64_t end) {
    D3PM_CALL_BEST(loss<Element>, call, begin, end);
  }
};

}  // namespace

bool run(Type type, const Loss& call) { return run_rows<BestLoss>(type, call); }

}  // namespace d3pm
