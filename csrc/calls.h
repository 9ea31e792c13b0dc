// What the kernels for rank-one chains are called with, on the CPU and by CUDA. N tokens, K
// classes; a tensor of logits, of its gradient or of log-probabilities has the type of the call, a
// tensor of `real` numbers that of the calculation: double for double, float for all others.
#pragma once

#include <cstdint>

#include "rank_one.h"
#include "sampling.h"

namespace d3pm {

// Tokens, and for each run of them, all of one length, the row of the table with its step.
struct Chain {
  int64_t num_tokens, num_classes;  // N, K
  const int64_t* rows;              // (N / run_length,)
  int64_t run_length;
  const double* table;  // (table_size, 7): StepCoefficients
  int64_t table_size;
  const void* pi;     // (K,) real; null for 1/K
  int64_t mask_id;    // negative where there is no mask
  int64_t forbidden;  // the class whose logits count as -inf, or negative

  D3PM_HOST_DEVICE bool is_class(int64_t j) const {
    return static_cast<uint64_t>(j) < static_cast<uint64_t>(num_classes);
  }
  D3PM_HOST_DEVICE bool may_be_data(int64_t j) const { return is_class(j) && j != forbidden; }

  template <class Real>
  D3PM_HOST_DEVICE Vector<Real> vector() const {
    return {static_cast<const Real*>(pi), 1.0 / static_cast<double>(num_classes), mask_id};
  }

  // Whether the table has a row for the tokens of a run.
  D3PM_HOST_DEVICE bool has_row(int64_t run) const {
    return static_cast<uint64_t>(rows[run]) < static_cast<uint64_t>(table_size);
  }

  // The coefficients of the step of a run; null where there is none.
  D3PM_HOST_DEVICE const StepCoefficients* step(int64_t run) const {
    if (!has_row(run)) return nullptr;
    const auto* found = reinterpret_cast<const StepCoefficients*>(table) + rows[run];
    return found->keep == found->keep ? found : nullptr;
  }
};

// How the model's distribution is made of its prediction.
struct Model {
  bool posterior_mean;  // else joint
  bool direct;          // whether p(x_0 | x_1) is the prediction itself

  D3PM_HOST_DEVICE bool predicts_x0(const StepCoefficients& step) const {
    return direct & (step.target_time == 0);
  }
};

// Of a loss: vb KL(q || p) + ce (-log s[x_0]), times a factor of the token.
struct Weights {
  double vb, ce;
  const void* tokens;  // (N,) real; null for 1

  template <class Real>
  D3PM_HOST_DEVICE Real of(int64_t token) const {
    return tokens ? static_cast<const Real*>(tokens)[token] : Real(1);
  }
};

struct Loss {
  Chain chain;
  Model model;
  const void* logits;       // (N, L)
  int64_t num_logits;       // L, of K classes; of the first L where the last one is forbidden
  int64_t class_stride;     // 1; for the CPU also P, where each item has P tokens, classes first
  const int64_t *x0, *x_t;  // (N,)
  const uint8_t* mask;      // (N,); null where every token counts
  Weights weights;
  bool is_density;  // whether u are rates, and the loss is the bound's density
  bool with_terms;  // whether beside each loss its two terms are wanted, times the token's factor
  double grad_scale;
  const void*
      count;   // (1,) real, what divides the gradient where the host does not know it; or null
  void* loss;  // (N,) real, or (N, 3) with terms
  void* grad;  // (N, L); null where no gradient is wanted

  // Whether a token has a loss.
  template <class Real>
  D3PM_HOST_DEVICE bool counts(int64_t token) const {
    return (!mask || mask[token]) && weights.of<Real>(token) != 0;
  }

  // What the gradient is multiplied by.
  template <class Real>
  D3PM_HOST_DEVICE Real factor() const {
    const Real scale = static_cast<Real>(grad_scale);
    return count ? scale / *static_cast<const Real*>(count) : scale;
  }

  D3PM_HOST_DEVICE int64_t num_results() const { return with_terms ? 3 : 1; }
};

// A loss in strokes, of a shard of the classes: the logits of `of`, and its gradient, are of those
// from `first` on.
struct LossStrokes {
  Loss of;
  int64_t first;
  void* statistics;  // (N, 5) real: top, e_rest, and the logits of x_0, x_t and the mask
  void* line;        // (N, 3) real: ratio, shift and slope
  void* sums;        // (N, 2) real: sum_phi and sum_h
};

// The density by log scores in place of logits; N of K classes.
struct ScoreLoss {
  Loss of;
  const double* pi;  // (K,); null for 1/K
  // (K,) real: their sum is log pi_j, 0 where pi is 0, and a level is a multiple of 2^-16; or null.
  const void *levels, *rests;
};

// log q(x_s | x_t, x_0).
struct QPosterior {
  Chain chain;
  const int64_t *x0, *x_t;  // (N,)
  void* out;                // (N, K)
};

// log p(x_s | x_t), or with `upstream` the gradient of the logits.
struct PPosterior {
  Chain chain;
  Model model;
  const void *logits, *upstream;  // (N, K)
  const int64_t* x_t;             // (N,)
  void* out;                      // (N, K)
};

// A draw of q(x_t | x_s). `chain.table` is (table_size, 3) here: A, W, M of
// Qbar = A I + 1 (W pi + M e)^T.
struct QSample {
  Chain chain;
  const double* cdf;  // (K,) of pi; null for 1/K
  Random random;
  const int64_t* x;  // (N,)
  int64_t* out;      // (N,)
};

// A draw of p(x_s | x_t). `chain.pi` is in double.
struct PSample {
  Chain chain;
  const double* cdf;  // (K,) of pi; null for 1/K
  Model model;
  Random random;
  const void* logits;  // (N, K)
  const int64_t* x_t;  // (N,)
  int64_t* out;        // (N,)
};

// Guidance, temperature and truncation of logits; top_k = K, top_p = 1 and min_p = 0 keep all.
struct Shaping {
  const void* unconditional;  // as the logits; null for no guidance
  double guidance, temperature;
  int64_t top_k;
  double top_p, min_p;
  int64_t forbidden;  // as in Chain
};

}  // namespace d3pm
