#pragma once

#include "../calls.h"

namespace d3pm {

// Looks up the steps of tokens that come in rising order.
class StepCursor {
 public:
  explicit StepCursor(const Chain& chain) : chain_(chain) {}

  // The coefficients of a token's step; null where there is none.
  const StepCoefficients* operator()(int64_t token) {
    if (token >= end_) {
      const int64_t run = token / chain_.run_length;
      end_ = (run + 1) * chain_.run_length;
      step_ = chain_.step(run);
    }
    return step_;
  }

  // The first token behind those that share the step looked up last.
  int64_t end() const { return end_; }

 private:
  const Chain& chain_;
  int64_t end_ = 0;
  const StepCoefficients* step_ = nullptr;
};

}  // namespace d3pm
