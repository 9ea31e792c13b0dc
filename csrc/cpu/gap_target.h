// The gaps of a run of tokens, for one set of vector instructions.

#include "row.h"

template <class Element>
static bool gap(const Gap& call, int64_t begin, int64_t end) {
  using Real = typename Memory<Element>::Real;
  const RowReader<Element> row(call.num_tokens, call.num_classes);
  const Scratch<Real> logits(row.padded);
  bool bad = false;
  for (int64_t token = begin; token < end; ++token) {
    const Element* const from = static_cast<const Element*>(call.logits) + token * row.classes;
    const Real top = row.copy(from, token, logits.data(), logits.data() + row.whole);
    const int64_t x = call.x[token];
    const bool is_class = x >= 0 && x < row.classes;
    static_cast<Real*>(call.out)[token] = is_class ? top - logits.data()[x] : NAN;
    bad |= !is_class;
  }
  return bad;
}
