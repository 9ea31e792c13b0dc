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

// In double and in one order, whatever the number of threads.
template <class Real>
double sum(const Real* values, int64_t count) {
  double parts[8] = {};
  for (int64_t i = 0; i < count; ++i) parts[i % 8] += values[i];
  double total = 0;
  for (double part : parts) total += part;
  return total;
}

template <class Real>
bool run_sum_as(Type type, Loss call, double factor) {
  Real* reduced = static_cast<Real*>(call.loss);
  const Scratch<Real> losses(call.chain.num_tokens);
  call.loss = losses.data();
  const bool bad = run(type, call);
  *reduced = static_cast<Real>(sum(losses.data(), call.chain.num_tokens) * factor);
  return bad;
}

}  // namespace

bool run(Type type, const Loss& call) { return run_rows<BestLoss>(type, call); }

bool run_sum(Type type, const Loss& call, double factor) {
  return type == Type::float64 ? run_sum_as<double>(type, call, factor)
                               : run_sum_as<float>(type, call, factor);
}

}  // namespace d3pm
