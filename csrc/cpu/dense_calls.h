// What the CPU's kernels for dense and sparse chains are called with.
#pragma once

#include <cstdint>

#include "../sampling.h"

namespace d3pm {

// Tokens of one step of a dense chain. Each has a row of K numbers in buffers of the caller, in
// double where they are `wide`, else in the type of the calculation: `work`. N tokens in all, n of
// this call; tables by class have K rows, or n where they are by row.
//
// With s = softmax(logits), and with an anchor class a (x_0, or x_t where there is none), the
// buffers hold v, s without s_a unless `joined`, or s - e_a where `centred`, times a number a row;
// then v Qbar_s; then r, what the loss is linear in, and r Qbar_s^T, where they are centred up to
// a number a row.
struct DenseRows {
  int64_t num_rows, num_classes, num_tokens;  // n, K, N
  const int64_t* tokens;                      // (n,), the place of each in the tensors of all
  const int64_t *anchor, *x_t;                // (N,)
  bool wide;
  bool centred, joined;  // not centred: whether s_a is in v too, and f with it, without Qbar_s
  bool by_row;           // the tables of columns and rows hold those of these tokens in order
  void* sums;            // (n, 3) real: s_a, the others' sum, that of v to s
  const void* factors;   // (N,) real, of the loss of each token; null for 1
};

// Classes from `first` to the one before `last`.
struct Span {
  int64_t first, last;
};

// Writes v, and the loss's cross-entropy, or 0. A loss has its two terms beside it, without their
// weights, where it has three results.
struct DensePredict {
  DenseRows rows;
  const void* logits;  // (N, K)
  const double*
      log_tilt;  // (K, K), -log Qbar_t[:, x_t] in row x_t, for the posterior mean; or null
  void* v;       // (n, K) work
  double ce_weight;
  int64_t num_results;
  void* loss;  // (N, num_results) real, or null
};

// Turns v Qbar_s into r and adds the divergence to the loss. A row is inexact where `error`, a
// bound on that of an entry of v Qbar_s, could reach the digits of its loss. In place of a
// divergence the bound's density at s = t.
struct DenseLoss {
  DenseRows rows;
  bool is_density;
  const void*
      columns;        // (K, K) real, Q_{s->t}[:, x_t] in row x_t; of a density the rates, 0 at x_t
  const void* q_bar;  // (K, K) work, Qbar_s
  const Span* spans;  // (K,), of each column: where it is not zero
  void* f;            // (n, K) work
  double vb_weight, error;
  int64_t num_results;
  void* loss;        // (N, num_results) real
  uint8_t* inexact;  // (n,)
};

// Writes log p(x_s | x_t), or with `upstream` turns v Qbar_s into the r of its gradient.
struct DensePosterior {
  DenseRows rows;
  const void *columns, *q_bar;  // as those of the loss
  const double* log_columns;    // (K, K)
  void* f;                      // (n, K) work
  double error;
  const void* upstream;  // (N, K), or null
  void* out;             // (N, K)
  uint8_t* inexact;      // (n,)
};

// Writes s (G - its mean under s) + ce_weight (softmax(logits) - e_a) for G = r Qbar_s^T, times
// `scale`; without G the cross-entropy's part alone.
struct DenseGradient {
  DenseRows rows;
  const void* logits;  // (N, K)
  const void *v, *g;   // (n, K) work
  double ce_weight, scale;
  void* grad;  // (N, K)
};

// Draws x_s; from s itself where `columns` is null.
struct DenseSample {
  DenseRows rows;
  const void *columns, *q_bar;  // as those of the loss
  const void* f;                // (n, K) work
  double error;
  Random random;
  int64_t* out;      // (N,)
  uint8_t* inexact;  // (n,)
};

struct DenseQPosterior {
  DenseRows rows;
  const double *log_columns, *log_rows;  // (K, K), of Q_{s->t}[:, x_t] and of Qbar_s[x_0]
  const double* log_reach;               // (K, K), of Qbar_t[:, x_t] in row x_t
  void* out;                             // (N, K)
};

// Draws from row x of a table of running sums.
struct DenseQSample {
  int64_t num_rows, num_classes, num_tokens;  // n, K, N
  const int64_t* tokens;                      // (n,)
  const int64_t* x;                           // (N,)
  const double* cdf;                          // (K, K)
  Random random;
  int64_t* out;  // (N,)
};

// Writes sum_n terms[n] v M^n for rows v, by columns of the sparse M: that of class j has the
// entries starts[j] to starts[j + 1], each in the row sources[e]. In float or double throughout.
struct SparsePolynomial {
  int64_t num_rows, num_classes;  // n, K
  const int64_t* starts;          // (K + 1,)
  const int32_t* sources;         // (starts[K],)
  const void* weights;            // (starts[K],)
  const double* terms;            // (num_terms,)
  int64_t num_terms;
  const void* v;  // (n, K)
  void* out;      // (n, K)
};

// Draws a number of jumps, then each from a row of a sparse matrix: that of class i has the
// entries starts[i] to starts[i + 1], of the classes `targets` and the running sums `cdf`.
struct SparseQSample {
  int64_t num_rows, num_tokens;  // n, N
  const int64_t* tokens;         // (n,)
  const int64_t* x;              // (N,)
  const double* jumps_cdf;       // (num_counts,)
  int64_t num_counts;
  const int64_t* starts;   // (K + 1,)
  const int32_t* targets;  // (starts[K],)
  const double* cdf;       // (starts[K],)
  Random random;
  int64_t* out;  // (N,)
};

}  // namespace d3pm
