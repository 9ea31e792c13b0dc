// The loss stroke by stroke, for one set of vector instructions.

#include "loss_block.h"

#include "loss_row_by_row.h"

template <class Element>
static bool loss_statistics(const LossStrokes& call, int64_t begin, int64_t end) {
  using Layout = RowByRow<Element, false>;
  return loss_of_tokens<Element, Layout, Stroke::kStatistics>(call, begin, end);
}

template <class Element>
static bool loss_solve(const LossStrokes& call, int64_t begin, int64_t end) {
  using Layout = RowByRow<Element, false>;
  return loss_of_tokens<Element, Layout, Stroke::kSolve>(call, begin, end);
}

template <class Element>
static bool loss_sums(const LossStrokes& call, int64_t begin, int64_t end) {
  using Layout = RowByRow<Element, false, true>;
  return loss_of_tokens<Element, Layout, Stroke::kSums>(call, begin, end);
}

template <class Element>
static bool loss_gradient(const LossStrokes& call, int64_t begin, int64_t end) {
  using Layout = RowByRow<Element, true>;
  return loss_of_tokens<Element, Layout, Stroke::kGradient>(call, begin, end);
}
