// The loss by scores and its gradient on a GPU: a row is read once and its gradient written once,
// for no class needs to know of another.

#include "../score_token.h"
#include "rows.h"

namespace d3pm::device {

#include "../score_row.h"

namespace {

// Of a row, that a thread holds at a time: there is nothing to keep of it.
template <class Element>
constexpr int kScores = sizeof(Element) == 8   ? 2
                        : sizeof(Element) == 4 ? 4
                                               : 8;

template <class Element>
using ScoreRows = Rows<Element, kScores<Element>>;

template <class Element>
__global__ void __launch_bounds__(kMostThreads)
    score_loss(const ScoreLoss call, const ScoreRows<Element> rows) {
  using Real = typename Memory<Element>::Real;
  using M = Math<Real>;
  const Loss& loss = call.of;
  const Chain& chain = loss.chain;
  const int64_t token = rows.row(), num_classes = chain.num_classes;
  const bool inside = token < chain.num_tokens;
  const int64_t run = inside ? token / chain.run_length : 0;
  const ScoreToken<Real> of(call, inside ? chain.step(run) : nullptr, inside ? token : 0);
  const bool reads = inside && of.reads;
  const Real* const pi = static_cast<const Real*>(chain.pi);
  const Real* const levels = static_cast<const Real*>(call.levels);
  const Real* const rests = static_cast<const Real*>(call.rests);
  const Element* const from = static_cast<const Element*>(loss.logits) + token * num_classes;
  Element* const to = static_cast<Element*>(loss.grad) + token * num_classes;
  const Real factor = reads ? of.slope * loss.factor<Real>() : Real(0);

  Real sum = 0;
  rows.each_part([&](int start) {
    Real y[kScores<Element>];
    rows.read(from, start, reads ? num_classes : 0, y);
    rows.each_number(start, [&](int i, int j) {
      const Real score = y[i];
      y[i] = reads ? Real(0) : of.value;
      if (!reads || j >= num_classes || j == of.x_t || (j == of.apart && !of.has_mask)) return;
      ScoreRatio<Real> at = of.of_rest;
      if (j == of.x0) {
        at = of.of_x0;
      } else if (j == of.apart) {
        at = of.of_mask;
      } else if (pi) {
        at.ratio *= pi[j];
        at.high += levels[j];
        at.low += rests[j];
      }
      const ScorePoint<M> point(score, at.ratio, at.high, at.low);
      sum += point.term;
      if (factor != 0) y[i] = factor * point.slope;
    });
    if (inside && loss.grad) rows.write(to, start, num_classes, y);
  });
  sum = rows.reduce(sum, Sum());
  if (inside && rows.is_first_thread()) of.write(loss, token, sum);
}

}  // namespace

template <class Element>
const char* launch(const ScoreLoss& call, void* on) {
  const auto stream = static_cast<cudaStream_t>(on);
  const Loss& of = call.of;
  const ScoreRows<Element> rows(of.chain.num_classes, {of.logits, of.grad});
  D3PM_LAUNCH(score_loss<Element>, rows.blocks(of.chain.num_tokens), rows.block(), 0, stream, call,
              rows);
  return last_error();
}

template const char* launch<D3PM_ELEMENT>(const ScoreLoss&, void*);

}  // namespace d3pm::device
