// What the CPU's kernels that make logits, or look at nothing else, are called with.
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

// What rows of logits say of tokens: two classes, drawn or the argmax and the argmax, and six
// numbers, in the order of d3pm_fast.functional.PredictedTokens.
struct Predict {
  int64_t num_tokens, num_classes;   // N, K
  const void* logits;                // (N, K)
  const int64_t* known;              // (N,): a class, or kNone where the row is to be read
  const int64_t *seeds, *positions;  // (N,)
  int64_t step;
  bool samples;
  Shaping shaping;
  int64_t* tokens;  // (N, 2)
  void* numbers;    // (N, 6) real
};

struct ShapedLogits {
  int64_t num_tokens, num_classes;  // N, K
  const void* logits;               // (N, K)
  Shaping shaping;
  void* out;  // (N, K) real
};

}  // namespace d3pm
