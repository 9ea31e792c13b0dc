// How far the logit of a token's class is below the largest of its row.

#include "../gap.h"

#include "rows.h"

namespace d3pm::device {
namespace {

template <class Element>
using GapRows = Rows<Element, kMostNumbers<Element>>;

template <class Element>
__global__ void __launch_bounds__(kMostThreads) gap(const Gap call, const GapRows<Element> rows) {
  using Real = typename Memory<Element>::Real;
  const int64_t token = rows.row();
  const bool inside = token < call.num_tokens;
  const Element* const row = static_cast<const Element*>(call.logits) + token * call.num_classes;
  Real top = -INFINITY;
  rows.each_part([&](int64_t start) {
    Real logits[kMostNumbers<Element>];
    rows.read(row, start, inside ? call.num_classes : 0, logits);
    for (Real logit : logits) top = Max()(top, logit);
  });
  top = rows.reduce(top, Max());
  if (!inside || !rows.is_first_thread()) return;
  const int64_t x = call.x[token];
  const bool is_class = x >= 0 && x < call.num_classes;
  static_cast<Real*>(call.out)[token] =
      is_class ? top - Memory<Element>::widen(row[x]) : static_cast<Real>(NAN);
}

}  // namespace

template <class Element>
const char* launch(const Gap& call, void* on) {
  const auto stream = static_cast<cudaStream_t>(on);
  const GapRows<Element> rows(call.num_classes, {call.logits});
  D3PM_LAUNCH(gap<Element>, rows.blocks(call.num_tokens), rows.block(), 0, stream, call, rows);
  return last_error();
}

template const char* launch<D3PM_ELEMENT>(const Gap&, void*);

}  // namespace d3pm::device
