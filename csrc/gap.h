// How far the logit of a token's class is below the largest of its row: the smallest operation on
// rows, and the example of docs/design.md.
#pragma once

#include <cstdint>

#include "elements.h"

namespace d3pm {

struct Gap {
  int64_t num_tokens, num_classes;  // N, K
  const void* logits;               // (N, K)
  const int64_t* x;                 // (N,)
  void* out;                        // (N,) real
};

bool run(Type type, const Gap& call, int num_threads);

namespace device {
template <class Element>
const char* launch(const Gap& call, void* stream);
}

}  // namespace d3pm
