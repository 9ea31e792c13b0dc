#include "../loss_token.h"
#include "kernels.h"
#include "target_headers.h"

#define D3PM_TARGET_FILE "loss_target.h"
#include "for_each_target.h"

namespace d3pm {
namespace {

// Of every `stride`-th value, in double and in one order, whatever the number of threads.
template <class Real>
double sum(const Real* values, int64_t count, int64_t stride) {
  double parts[8] = {};
  for (int64_t i = 0; i < count; ++i) parts[i % 8] += values[i * stride];
  double total = 0;
  for (double part : parts) total += part;
  return total;
}

template <class Real>
bool run_sum_as(Type type, Loss call, double factor, int num_threads) {
  Real* reduced = static_cast<Real*>(call.loss);
  const int64_t num_tokens = call.chain.num_tokens, width = call.num_results();
  const Scratch<Real> losses(num_tokens * width);
  call.loss = losses.data();
  const bool bad = run(type, call, num_threads);
  for (int64_t i = 0; i < width; ++i)
    reduced[i] = static_cast<Real>(sum(losses.data() + i, num_tokens, width) * factor);
  return bad;
}

}  // namespace

bool run(Type type, const Loss& call, int num_threads) {
  const LossStrokes whole{call, 0, nullptr, nullptr, nullptr};
  return run_rows(type, call.chain, num_threads, [&](auto element, int64_t begin, int64_t end) {
    D3PM_CALL_BEST(loss<decltype(element)>, whole, begin, end);
  });
}

bool run_sum(Type type, const Loss& call, double factor, int num_threads) {
  return type == Type::float64 ? run_sum_as<double>(type, call, factor, num_threads)
                               : run_sum_as<float>(type, call, factor, num_threads);
}

}  // namespace d3pm
