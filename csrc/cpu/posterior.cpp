#include "kernels.h"

#define D3PM_TARGET_FILE "posterior_target.h"
#include "for_each_target.h"

namespace d3pm {
namespace {

struct BestQPosterior {
  template <class Element>
  static bool call(const QPosterior& call, int64_t begin, int64_t end) {
    D3PM_CALL_BEST(q_posterior<Element>, call, begin, end);
  }
};

struct BestPPosterior {
  template <class Element>
  static bool call(const PPosterior& call, int64_t begin, int64_t end) {
    D3PM_CALL_BEST(p_posterior<Element>, call, begin, end);
  }
};

}  // namespace

bool run(Type type, const QPosterior& call) { return run_rows<BestQPosterior>(type, call); }

bool run(Type type, const PPosterior& call) { return run_rows<BestPPosterior>(type, call); }

}  // namespace d3pm
