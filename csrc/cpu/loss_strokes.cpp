#include "../loss_token.h"
#include "kernels.h"
#include "target_headers.h"

#define D3PM_TARGET_FILE "loss_strokes_target.h"
#include "for_each_target.h"

namespace d3pm {
namespace {

template <class Body>
bool run_shard(Type type, const LossStrokes& call, int num_threads, const Body& body) {
  return run_rows(type, call.of.chain.num_tokens, call.of.num_logits, num_threads, body);
}

}  // namespace

bool run_statistics(Type type, const LossStrokes& call, int num_threads) {
  return run_shard(type, call, num_threads, [&](auto element, int64_t begin, int64_t end) {
    D3PM_CALL_BEST(loss_statistics<decltype(element)>, call, begin, end);
  });
}

bool run_solve(Type type, const LossStrokes& call, int num_threads) {
  return run_shard(type, call, num_threads, [&](auto element, int64_t begin, int64_t end) {
    D3PM_CALL_BEST(loss_solve<decltype(element)>, call, begin, end);
  });
}

bool run_sums(Type type, const LossStrokes& call, int num_threads) {
  return run_shard(type, call, num_threads, [&](auto element, int64_t begin, int64_t end) {
    D3PM_CALL_BEST(loss_sums<decltype(element)>, call, begin, end);
  });
}

bool run_gradient(Type type, const LossStrokes& call, int num_threads) {
  return run_shard(type, call, num_threads, [&](auto element, int64_t begin, int64_t end) {
    D3PM_CALL_BEST(loss_gradient<decltype(element)>, call, begin, end);
  });
}

}  // namespace d3pm
