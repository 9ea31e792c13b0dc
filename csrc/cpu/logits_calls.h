// What the CPU's kernels that make logits are called with.
#pragma once

#include <cstdint>

#include "../calls.h"

namespace d3pm {

// The parameters of each token's logistic distribution.
struct Logistic {
  int64_t num_tokens, num_classes;  // N, K
  bool edge_corrected;
  const void *loc, *log_scale;  // (N,)
};

struct LogisticLogits {
  Logistic logistic;
  void* out;  // (N, K) real
};

struct LogisticGradient {
  Logistic logistic;
  const void* upstream;   // (N, K) real
  void *loc, *log_scale;  // (N,)
};

struct ShapedLogits {
  int64_t num_tokens, num_classes;  // N, K
  const void* logits;               // (N, K)
  Shaping shaping;
  void* out;  // (N, K) real
};

}  // namespace d3pm
