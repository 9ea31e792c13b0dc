// For tests only: what decides the draws of tokens that have a step, a class and numbers each.

#include "p_sample_token.h"

extern "C" void components(int64_t count, const d3pm::StepCoefficients* steps, const double* pi,
                           double uniform, int64_t mask_id, const int64_t* x_t,
                           const double* numbers, int32_t* out) {
  const d3pm::Vector<double> vector{pi, uniform, mask_id};
  // By the class that is drawn: from pi one far above all others.
  constexpr int64_t kModel = -1, kMask = -2, kMany = int64_t{1} << 40;
  d3pm::PSample call{};
  call.chain.num_classes = kMany;
  call.chain.mask_id = kMask;
  for (int64_t i = 0; i < count; ++i, numbers += 3, out += 2) {
    const d3pm::PSampleToken token(steps[i], vector, steps[i].target_time == 0, x_t[i]);
    const auto of_model = [] { return kModel; };
    const int64_t drawn = token.draw(call, {numbers[0], 0.5}, numbers[1], numbers[2], of_model);
    out[0] = token.stays(numbers[0]);
    out[1] = drawn == kModel ? 0 : drawn == kMany / 2 ? 1 : drawn == kMask ? 2 : 3;
  }
}
