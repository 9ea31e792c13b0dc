#include "../sampling.h"
#include "kernels.h"

#define D3PM_TARGET_FILE "p_sample_target.h"
#include "for_each_target.h"

namespace d3pm {
namespace {

struct BestPSample {
  template <class Element>
  static bool call(const PSample& call, int64_t begin, int64_t end) {
    D3PM_CALL_BEST(p_sample<Element>, call, begin, end);
  }
};

}  // namespace

bool run(Type type, const PSample& call) { return run_rows<BestPSample>(type, call); }

}  // namespace d3pm
