// For tests only: what decides the draws of tokens that have a step, a class and numbers each.

#include "p_sample_token.h"

extern "C" void components(int64_t count, const d3pm::StepCoefficients* steps, const double* pi,
                           double uniform, int64_t mask_id, const int64_t* x_t,
                           const double* numbers, int32_t* out) {
  const d3pm::Vector<double> vector{pi, uniform, mask_id};
  for (int64_t i = 0; i < count; ++i, numbers += 3, out += 2) {
    const d3pm::PSampleToken token(steps[i], vector, steps[i].target_time == 0, x_t[i]);
    out[0] = token.stays(numbers[0]);
    out[1] = static_cast<int32_t>(token.component(numbers[0], numbers[1], numbers[2]));
  }
}
