// The loss and its gradient, for one set of vector instructions.

#include "loss_block.h"

#include "loss_across.h"
#include "loss_row_by_row.h"

template <class Element, bool kGrad>
bool loss_in_best_layout(const LossStrokes& call, int64_t begin, int64_t end) {
  using Narrow = Across<Element, kGrad>;
  return call.of.num_logits <= Narrow::kMostClasses || call.of.class_stride != 1
             ? loss_of_tokens<Element, Narrow, Stroke::kAll>(call, begin, end)
             : loss_of_tokens<Element, RowByRow<Element, kGrad>, Stroke::kAll>(call, begin, end);
}

template <class Element>
static bool loss(const LossStrokes& call, int64_t begin, int64_t end) {
  return call.of.grad ? loss_in_best_layout<Element, true>(call, begin, end)
                      : loss_in_best_layout<Element, false>(call, begin, end);
}
