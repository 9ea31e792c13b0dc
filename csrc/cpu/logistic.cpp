#include "kernels.h"
#include "target_headers.h"

#define D3PM_TARGET_FILE "logistic_target.h"
#include "for_each_target.h"

namespace d3pm {
namespace {

template <class Body>
bool run_tokens(Type type, const Logistic& of, int num_threads, const Body& body) {
  return run_rows(type, of.num_tokens, of.num_classes, num_threads, body);
}

}  // namespace

bool run(Type type, const LogisticLogits& call, int num_threads) {
  return run_tokens(type, call.logistic, num_threads,
                    [&](auto element, int64_t begin, int64_t end) {
                      D3PM_CALL_BEST(logistic_logits<decltype(element)>, call, begin, end);
                    });
}

bool run(Type type, const LogisticGradient& call, int num_threads) {
  return run_tokens(type, call.logistic, num_threads,
                    [&](auto element, int64_t begin, int64_t end) {
                      D3PM_CALL_BEST(logistic_gradient<decltype(element)>, call, begin, end);
                    });
}

}  // namespace d3pm
