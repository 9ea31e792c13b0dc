// The CPU kernels: what module.cpp binds and the other files of this folder define.
#pragma once

#include "../calls.h"
#include "../elements.h"
#include "dense_calls.h"
#include "logits_calls.h"

namespace d3pm {

// All return whether an index was out of its range, a row inexact, or a draw's row no law; such a
// token's result is NaN, or kNone for a draw.
bool run(Type type, const Loss& call, int num_threads);
// The sum over tokens times `factor`, in place of each token's loss.
bool run_sum(Type type, const Loss& call, double factor, int num_threads);
// The loss stroke by stroke.
bool run_statistics(Type type, const LossStrokes& call, int num_threads);
bool run_solve(Type type, const LossStrokes& call, int num_threads);
bool run_sums(Type type, const LossStrokes& call, int num_threads);
bool run_gradient(Type type, const LossStrokes& call, int num_threads);
bool run(Type type, const ScoreLoss& call, int num_threads);
bool run(Type type, const QPosterior& call, int num_threads);
bool run(Type type, const PPosterior& call, int num_threads);
bool run(const QSample& call, int num_threads);
bool run(Type type, const PSample& call, const Shaping& shaping, int num_threads);
bool run(Type type, const Predict& call, int num_threads);
bool run(Type type, const DensePredict& call, int num_threads);
bool run(Type type, const DenseLoss& call, int num_threads);
bool run(Type type, const DensePosterior& call, int num_threads);
bool run(Type type, const DenseGradient& call, int num_threads);
bool run(Type type, const DenseSample& call, int num_threads);
bool run(Type type, const DenseQPosterior& call, int num_threads);
bool run(const DenseQSample& call, int num_threads);
bool run(Type type, const SparsePolynomial& call, int num_threads);
bool run(const SparseQSample& call, int num_threads);
// These have no index to look at and return false.
bool run(Type type, const LogisticLogits& call, int num_threads);
bool run(Type type, const LogisticGradient& call, int num_threads);
bool run(Type type, const ShapedLogits& call, int num_threads);

}  // namespace d3pm
