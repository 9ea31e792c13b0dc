// Logits shaped for sampling, for one set of vector instructions.

#include "shaped_row.h"

template <class Element>
static bool shaped_logits(const ShapedLogits& call, int64_t begin, int64_t end) {
  using Real = typename Memory<Element>::Real;
  using V = typename VectorOf<Real>::Type;
  const RowReader<Element> row(call.num_tokens, call.num_classes, call.shaping.forbidden);
  const RowReader<Real> made_row(call.num_tokens, call.num_classes);
  const ShapedRow<Element> shaped(row, call.logits, call.shaping);
  const Scratch<Real> made(row.padded);
  for (int64_t token = begin; token < end; ++token) {
    shaped.make(token, made.data());
    made_row.write(static_cast<Real*>(call.out) + token * row.classes,
                   [&](int64_t j) D3PM_MEMBER { return load<V>(made.data() + j); });
  }
  return false;
}
