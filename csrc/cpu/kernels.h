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

struct Random {
  const int64_t* seeds;
  int64_t num_seeds, step;
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

struct PSample {
  Chain chain;
  const double* cdf;
  Model model;
  Random random;
  const void* logits;
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

// All return whether an index was out of its range; such a token's result is NaN, or x itself
// for a draw.
bool run(Type type, const Loss& call);
// The sum over tokens times `factor`, in place of each token's loss.
bool run_sum(Type type, const Loss& call, double factor);
bool run(Type type, const QPosterior& call);
bool run(Type type, const PPosterior& call);
bool run(const QSample& call);
bool run(Type type, const PSample& call);
// These have no index to look at and return false.
bool run(Type type, const LogisticLogits& call);
bool run(Type type, const LogisticGradient& call);

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
