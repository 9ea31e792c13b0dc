#include "kernels.h"

#define D3PM_TARGET_FILE "logistic_target.h"
#include "for_each_target.h"

namespace d3pm {
namespace {

struct BestLogisticLogits {
  template <class Element>
  static bool call(const LogisticLogits& call, int64_t begin, int64_t end) {
    D3PM_CALL_BEST(logistic_logits<Element>, call, begin, end);
  }
};

struct BestLogisticGradient {
  template <class Element>
  static bool call(const LogisticGradient& call, int64_t begin, int64_t end) {
    D3PM_CALL_BEST(logistic_gradient<Element>, call, begin, end);
  }
};

template <class Kernel, class Call>
bool run_tokens(Type type, const Call& call) {
  const Logistic& of = call.logistic;
  return run_rows<Kernel>(type, call, of.num_tokens, of.num_classes, of.num_threads);
}

}  // namespace

bool run(Type type, const LogisticLogits& call) {
  return run_tokens<BestLogisticLogits>(type, call);
}

bool run(Type type, const LogisticGradient& call) {
  return run_tokens<BestLogisticGradient>(type, call);
}

}  // namespace d3pm
