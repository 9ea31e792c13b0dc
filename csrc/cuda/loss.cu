// The loss of rank-one chains and its gradient on a GPU. A row of few classes is one thread's, in
// shared memory; a longer one lies in the registers of a part of a warp, a warp or a block; the
// longest lie in the shared memory of a cluster of blocks, or where there is none are read three
// times.

#include "loss_cluster.h"
#include "loss_few.h"
#include "loss_long.h"
#include "loss_whole.h"

namespace d3pm::device {

template <class Element, bool kHasPi, int kThreads, class Real>
const char* start_whole(const Loss& call, const LossVector<Real>& vector,
                        std::initializer_list<const void*> starts, cudaStream_t stream) {
  const typename LossOfWholeRow<Element, kHasPi, kThreads>::BlockRows rows(call.num_logits, starts);
  const int64_t blocks = rows.blocks(call.chain.num_tokens);
  const int times = times_of(blocks);
  const size_t bytes =
      rows.shared_bytes() + times * rows.block() / rows.threads() * sizeof(KnownToken<Real>);
  allow_shared(loss_of_whole_rows<Element, kHasPi, kThreads>, bytes);
  D3PM_LAUNCH((loss_of_whole_rows<Element, kHasPi, kThreads>), (blocks + times - 1) / times,
              rows.block(), bytes, stream, call, vector, rows, times);
  return last_error();
}

// Starts the kernel for the number of classes; for doubles there is one alone.
template <class Element, bool kHasPi>
const char* start(const Loss& call, void* on) {
  const auto stream = static_cast<cudaStream_t>(on);
  const int64_t tokens = call.chain.num_tokens, classes = call.num_logits;
  const LossVector<typename Memory<Element>::Real> vector(call);
  const std::initializer_list<const void*> starts = {call.logits, call.grad, vector.pi};
  if constexpr (sizeof(Element) < 8) {
    if (classes <= FewClasses<Element>::kMost) {
      const FewClasses<Element> few(classes, starts);
      const auto kernel = classes == 27 && is_plain(call) ? loss_of_few_classes<Element, kHasPi, 27>
                                                          : loss_of_few_classes<Element, kHasPi, 0>;
      D3PM_LAUNCH(kernel, few.blocks(tokens), few.kRows, few.shared_bytes(), stream, call, vector,
                  few);
      return last_error();
    }
    if (classes <= 4 * 64) return start_whole<Element, kHasPi, 4>(call, vector, starts, stream);
    if (classes <= 16 * 64) return start_whole<Element, kHasPi, 16>(call, vector, starts, stream);
    if (const typename LossOfWholeRow<Element, kHasPi, 0>::BlockRows rows(classes, starts);
        rows.is_whole())
      return start_whole<Element, kHasPi, 0>(call, vector, starts, stream);
    const Cluster<Element> cluster(classes, starts);
    if (launch_clusters(loss_of_cluster_rows<Element, kHasPi>, tokens, cluster.blocks,
                        cluster.kThreads, cluster.shared_bytes(), stream, call, vector, cluster))
      return last_error();
  }
  const typename LossOfLongRow<Element, kHasPi>::BlockRows rows(classes, starts);
  D3PM_LAUNCH((loss_of_long_rows<Element, kHasPi>), rows.blocks(tokens), rows.block(), 0, stream,
              call, vector, rows);
  return last_error();
}

template <class Element>
const char* launch(const Loss& call, void* stream) {
  return call.chain.pi ? start<Element, true>(call, stream) : start<Element, false>(call, stream);
}

template const char* launch<D3PM_ELEMENT>(const Loss&, void*);

}  // namespace d3pm::device
