// The CPU kernels: what module.cpp binds and the other files of this folder define.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <type_traits>
#include <utility>

#include "../rank_one.h"
#include "../sampling.h"

namespace d3pm {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

enum class Type { float32, float64, bfloat16, float16 };
enum class Target { baseline, avx2, avx512 };

// The best set of vector instructions this machine has, or the lesser one that D3PM_FAST_ISA
// (baseline, avx2, avx512) asks for.
Target best_target();

// Tokens, and for each of num_rows runs of them the row of the table with its step.
struct Chain {
  int64_t num_tokens, num_classes;
  const int64_t* rows;
  int64_t num_rows;
  const double* table;
  int64_t table_size;
  const void* pi;  // in the type of the calculation; null for 1/K
  int64_t mask_id;

  bool is_class(int64_t value) const { return value >= 0 && value < num_classes; }

  template <class Real>
  Vector<Real> vector() const {
    return {static_cast<const Real*>(pi), 1.0 / static_cast<double>(num_classes), mask_id};
  }
};

// Looks up the steps of tokens that come in rising order.
class StepCursor {
 public:
  explicit StepCursor(const Chain& chain)
      : chain_(chain), run_(chain.num_tokens / chain.num_rows) {}

  // The coefficients of a token's step; null where there is none.
  const StepCoefficients* operator()(int64_t token) {
    if (token >= end_) {
      const int64_t run = token / run_, row = chain_.rows[run];
      end_ = (run + 1) * run_;
      step_ = nullptr;
      if (row >= 0 && row < chain_.table_size) {
        const auto* found = reinterpret_cast<const StepCoefficients*>(chain_.table) + row;
        if (found->keep == found->keep) step_ = found;
      }
    }
    return step_;
  }

  // The first token behind those that share the step looked up last.
  int64_t end() const { return end_; }

 private:
  const Chain& chain_;
  const int64_t run_;
  int64_t end_ = 0;
  const StepCoefficients* step_ = nullptr;
};

struct Model {
  bool posterior_mean, direct;

  bool predicts_x0(const StepCoefficients& step) const { return direct && step.target_time == 0; }
};

struct Loss {
  Chain chain;
  Model model;
  const void* logits;
  const int64_t *x0, *x_t;
  const uint8_t* mask;  // null where every token counts
  double vb_weight, ce_weight, grad_scale;
  void* loss;  // of each token
  void* grad;  // null where no gradient is wanted
  int num_threads;

  int64_t count() const {
    return mask ? std::count(mask, mask + chain.num_tokens, 1) : chain.num_tokens;
  }
};

struct QPosterior {
  Chain chain;
  const int64_t *x0, *x_t;
  void* out;
  int num_threads;
};

// Log-probabilities, or with `upstream` their gradient with respect to the logits.
struct PPosterior {
  Chain chain;
  Model model;
  const void *logits, *upstream;
  const int64_t* x_t;
  void* out;
  int num_threads;
};

// `chain.table` holds rows of three numbers here: A, W, M of Qbar_t = A I + 1 (W pi + M e)^T.
struct QSample {
  Chain chain;
  const double* cdf;  // of pi; null for 1/K
  Random random;
  const int64_t* x;
  int64_t* out;
  int num_threads;
};

// Guidance, temperature and truncation of logits; top_k = num_classes and top_p = 1 keep all.
struct Shaping {
  const void* unconditional;  // in the type of the logits; null for no guidance
  double guidance, temperature;
  int64_t top_k;
  double top_p;
};

struct PSample {
  Chain chain;
  const double* cdf;
  Model model;
  Random random;
  const void* logits;
  Shaping shaping;
  const int64_t* x_t;
  int64_t* out;
  int num_threads;
};

// The parameters of each token's logistic distribution.
struct Logistic {
  int64_t num_tokens, num_classes;
  bool edge_corrected;
  const void *loc, *log_scale;
  int num_threads;
};

struct LogisticLogits {
  Logistic logistic;
  void* out;  // in the type of the calculation, as is `upstream`
};

struct LogisticGradient {
  Logistic logistic;
  const void* upstream;
  void *loc, *log_scale;
};

struct ShapedLogits {
  int64_t num_tokens, num_classes;
  const void* logits;
  Shaping shaping;
  void* out;  // in the type of the calculation
  int num_threads;
};

// Tokens of one step of a dense chain. Each has a row of K numbers in buffers of the caller, in
// double where they are `wide`, else in the type of the calculation.
//
// With s = softmax(logits), and with an anchor class a (x_0, or x_t where there is none), the
// buffers hold v, s without s_a unless `joined`, or s - e_a where `centred`, times a number a row;
// then v Qbar_s; then r, what the loss is linear in, and r Qbar_s^T, where they are centred up to
// a number a row.
struct DenseRows {
  int64_t num_rows, num_classes, num_tokens;
  const int64_t* tokens;  // the place of each in the tensors of all tokens
  const int64_t *anchor, *x_t;
  bool wide;
  bool centred, joined;  // not centred: whether s_a is in v too, and f with it, without Qbar_s
  bool by_row;           // the tables of columns and rows hold those of these tokens in order
  void* sums;  // three a row, in the type of the calculation: s_a, the others' sum, that of v to s
  int num_threads;
};

// Classes from `first` to the one before `last`.
struct Span {
  int64_t first, last;
};

// Writes v, and the loss's cross-entropy, or 0.
struct DensePredict {
  DenseRows rows;
  const void* logits;
  const double* log_tilt;  // -log Qbar_t[:, x_t] in row x_t, for the posterior mean; else null
  void* v;
  double ce_weight;
  void* loss;  // of all tokens, or null
};

// Turns v Qbar_s into r and adds the divergence to the loss. A row is doubtful where `error`, a
// bound on that of an entry of v Qbar_s, could reach the digits of its loss.
struct DenseLoss {
  DenseRows rows;
  const void *columns, *q_bar;  // Q_{s->t}[:, x_t] in row x_t; Qbar_s, wide where the buffers are
  const Span* spans;            // of each column: where it is not zero
  void* f;
  double vb_weight, error;
  void* loss;
  uint8_t* doubtful;
};

// Writes log p(x_s | x_t), or with `upstream` turns v Qbar_s into the r of its gradient.
struct DensePosterior {
  DenseRows rows;
  const void *columns, *q_bar;
  const double* log_columns;
  void* f;
  double error;
  const void* upstream;
  void* out;  // of all tokens
  uint8_t* doubtful;
};

// Writes s (G - its mean under s) + ce_weight (softmax(logits) - e_a) for G = r Qbar_s^T, times
// `scale`; without G the cross-entropy's part alone.
struct DenseGradient {
  DenseRows rows;
  const void *logits, *v, *g;
  double ce_weight, scale;
  void* grad;  // of all tokens
};

// Draws x_s; from s itself where `columns` is null.
struct DenseSample {
  DenseRows rows;
  const void *columns, *q_bar, *f;
  double error;
  Random random;
  int64_t* out;  // of all tokens
  uint8_t* doubtful;
};

struct DenseQPosterior {
  DenseRows rows;
  const double *log_columns, *log_rows, *log_reach;
  void* out;  // of all tokens
};

// Draws from row x of a table of running sums.
struct DenseQSample {
  int64_t num_rows, num_classes, num_tokens;
  const int64_t *tokens, *x;
  const double* cdf;
  Random random;
  int64_t* out;
  int num_threads;
};

// Writes sum_n terms[n] v M^n for rows v, by columns of the sparse M: that of class j has the
// entries starts[j] to starts[j + 1], each in the row sources[e]. In float or double throughout.
struct SparsePolynomial {
  int64_t num_rows, num_classes;
  const int64_t* starts;
  const int32_t* sources;
  const void* weights;
  const double* terms;
  int64_t num_terms;
  const void* v;
  void* out;
  int num_threads;
};

// Draws a number of jumps, then each from a row of a sparse matrix: that of class i has the
// entries starts[i] to starts[i + 1], of the classes `targets` and the running sums `cdf`.
struct SparseQSample {
  int64_t num_rows, num_tokens;
  const int64_t *tokens, *x;
  const double* jumps_cdf;
  int64_t num_counts;
  const int64_t* starts;
  const int32_t* targets;
  const double* cdf;
  Random random;
  int64_t* out;
  int num_threads;
};

// All return whether an index was out of its range, a row doubtful, or a draw's row no law; such a
// token's result is NaN, or kNone for a draw.
bool run(Type type, const Loss& call);
// The sum over tokens times `factor`, in place of each token's loss.
bool run_sum(Type type, const Loss& call, double factor);
bool run(Type type, const QPosterior& call);
bool run(Type type, const PPosterior& call);
bool run(const QSample& call);
bool run(Type type, const PSample& call);
bool run(Type type, const DensePredict& call);
bool run(Type type, const DenseLoss& call);
bool run(Type type, const DensePosterior& call);
bool run(Type type, const DenseGradient& call);
bool run(Type type, const DenseSample& call);
bool run(Type type, const DenseQPosterior& call);
bool run(const DenseQSample& call);
bool run(Type type, const SparsePolynomial& call);
bool run(const SparseQSample& call);
// These have no index to look at and return false.
bool run(Type type, const LogisticLogits& call);
bool run(Type type, const LogisticGradient& call);
bool run(Type type, const ShapedLogits& call);

// Memory of one thread's own, aligned for any vector.
template <class Real>
class Scratch {
 public:
  explicit Scratch(int64_t size) : memory_(new Real[size + kAlign / sizeof(Real)]) {
    void* start = memory_.get();
    size_t space = size * sizeof(Real) + kAlign;
    data_ = static_cast<Real*>(std::align(kAlign, size * sizeof(Real), start, space));
  }
  Real* data() const { return data_; }

 private:
  static constexpr size_t kAlign = 64;
  std::unique_ptr<Real[]> memory_;
  Real* data_;
};

// Calls body(begin, end) on pieces of [0, size) from several threads and returns whether any
// call did. `cost` estimates the elements that the whole touches.
template <class Body>
bool parallel(int64_t size, double cost, int num_threads, const Body& body) {
  if (size == 0) return false;
  const int threads = cost < 32768 ? 1 : num_threads;
  const int64_t pieces = threads == 1 ? 1 : std::min<int64_t>(size, threads * 8);
  int bad = 0;
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) schedule(dynamic) reduction(| : bad) if (threads > 1)
#endif
  for (int64_t piece = 0; piece < pieces; ++piece)
    bad |= body(size * piece / pieces, size * (piece + 1) / pieces);
  return bad != 0;
}

// Runs Kernel::call<Element>(call, begin, end) over num_tokens tokens.
template <class Kernel, class Call>
bool run_rows(Type type, const Call& call, int64_t num_tokens, int64_t num_classes,
              int num_threads) {
  const auto run_as = [&](auto element) {
    using Element = decltype(element);
    const double cost = static_cast<double>(num_tokens) * static_cast<double>(num_classes);
    return parallel(num_tokens, cost, num_threads, [&](int64_t begin, int64_t end) {
      return Kernel::template call<Element>(call, begin, end);
    });
  };
  switch (type) {
    case Type::float32: return run_as(float{});
    case Type::float64: return run_as(double{});
    case Type::bfloat16: return run_as(BFloat16{});
    default: return run_as(Float16{});
  }
}

template <class Kernel, class Call>
bool run_rows(Type type, const Call& call) {
  return run_rows<Kernel>(type, call, call.chain.num_tokens, call.chain.num_classes,
                          call.num_threads);
}

}  // namespace d3pm
