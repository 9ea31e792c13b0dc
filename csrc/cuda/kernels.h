// The CUDA kernels: what module.cpp binds and the other files of this folder define. All pointers
// are to the device's memory; every call returns at once.
#pragma once

#include <cstdint>

#include "../sampling.h"

namespace d3pm::device {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

// Tokens, and for each run of them the row of the table with its step.
struct Chain {
  int64_t num_tokens, num_classes;
  const int64_t* rows;
  int64_t run_length;
  const double* table;
  int64_t table_size;
  const void* pi;  // in the type of the calculation; null for 1/K
  int64_t mask_id;
};

struct Loss {
  Chain chain;
  bool posterior_mean, direct;
  const void* logits;
  const int64_t *x0, *x_t;
  const uint8_t* mask;  // null where every token counts
  double vb_weight, ce_weight, grad_scale;
  const void* count;  // what divides the gradient, in the type of the calculation; null for 1
  void* loss;         // of each token, in the type of the calculation
  void* grad;         // null where no gradient is wanted
};

// Log-probabilities, of q where there are no logits, or with `upstream` the gradient of p's.
struct Posterior {
  Chain chain;
  bool posterior_mean, direct;
  const void *logits, *upstream;
  const int64_t *x0, *x_t;  // x0 is null for p
  void* out;
};

// `chain.table` holds rows of three numbers here: A, W, M of Qbar_t = A I + 1 (W pi + M e)^T.
struct QSample {
  Chain chain;
  const double* cdf;  // of pi; null for 1/K
  Random random;
  const int64_t* x;
  int64_t* out;
};

// `chain.pi` is in double.
struct PSample {
  Chain chain;
  const double* cdf;
  bool posterior_mean, direct;
  Random random;
  const void* logits;
  const int64_t* x_t;
  int64_t* out;
};

// The products Q_1 ... Q_t of all t, or with `upstream`, their gradient, the adjoints
// A_t = upstream_t + A_{t+1} Q_{t+1}^T in double. All are (T, K, K).
struct Scan {
  int64_t num_steps, num_classes;
  const void *matrices, *upstream;
  void* out;
};

// Starts a call on a stream (cudaStream_t) for logits of a type and returns what went wrong, null
// for nothing. A file that defines one for D3PM_ELEMENT is compiled once for each type.
template <class Element>
const char* launch(const Loss& call, void* stream);
template <class Element>
const char* launch(const Posterior& call, void* stream);
template <class Element>
const char* launch(const PSample& call, void* stream);
const char* launch(const QSample& call, void* stream);
template <class Element>
const char* launch(const Scan& call, void* stream);

}  // namespace d3pm::device
