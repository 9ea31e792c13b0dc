// Draws x_s ~ p(x_s | x_t) of rank-one chains.

#include "p_sample_few.h"
#include "p_sample_long.h"
#include "p_sample_whole.h"

namespace d3pm::device {

template <class Element, int kThreads>
const char* start_whole(const PSample& call,
                        const typename PSampleOfWholeRow<Element, kThreads>::BlockRows& rows,
                        cudaStream_t stream) {
  using OfRow = PSampleOfWholeRow<Element, kThreads>;
  const int64_t blocks = rows.blocks(call.chain.num_tokens);
  const int times = times_of(blocks), rows_of_block = rows.in_block();
  const size_t bytes = rows_of_block * (OfRow::pitch(rows.threads()) * sizeof(Element) +
                                        times * sizeof(RowOfDraw<typename OfRow::Real>));
  allow_shared(p_sample_of_whole_rows<Element, kThreads>, bytes);
  D3PM_LAUNCH((p_sample_of_whole_rows<Element, kThreads>), (blocks + times - 1) / times,
              rows.block(), bytes, stream, call, DrawVector(call), rows, times);
  return last_error();
}

template <class Element>
const char* launch(const PSample& call, void* on) {
  const auto stream = static_cast<cudaStream_t>(on);
  const int64_t classes = call.chain.num_classes;
  if constexpr (sizeof(Element) < 8) {
    if (classes <= FewClasses<Element>::kMost) {
      const FewClasses<Element> few(classes, {call.logits});
      const auto kernel = classes == 27 ? p_sample_of_few_classes<Element, 27>
                                        : p_sample_of_few_classes<Element, 0>;
      D3PM_LAUNCH(kernel, few.blocks(call.chain.num_tokens), few.kRows, few.shared_bytes(), stream,
                  call, DrawVector(call), few);
      return last_error();
    }
    if (classes <= 4 * 64) return start_whole<Element, 4>(call, {classes, {call.logits}}, stream);
    if (const typename PSampleOfWholeRow<Element, 0>::BlockRows rows(classes, {call.logits});
        rows.is_whole())
      return start_whole<Element, 0>(call, rows, stream);
  }
  const typename PSampleOfLongRow<Element>::BlockRows rows(classes, {call.logits});
  D3PM_LAUNCH((p_sample_of_long_rows<Element>), rows.blocks(call.chain.num_tokens), rows.block(), 0,
              stream, call, DrawVector(call), rows);
  return last_error();
}

template const char* launch<D3PM_ELEMENT>(const PSample&, void*);

}  // namespace d3pm::device
