// Log-probabilities of a step of rank-one chains, and their gradient.

#include "posterior_few.h"
#include "posterior_long.h"
#include "posterior_whole.h"

namespace d3pm::device {

// A token's row of log q, part by part.
template <class Element>
struct QPosteriorOfRow {
  static constexpr int kNumbers = Pack<Element>::kSize;
  using BlockRows = Rows<Element, kNumbers>;
  using Real = typename BlockRows::Real;

  const QPosterior& call;
  const BlockRows& rows;
  const int64_t token;
  bool good = false;
  QPosteriorToken<Math<Real>, Real> of;
  Real log_leave = 0, log_stay = 0, log_kept = 0;  // log_kept: log d[x_0]

  __device__ QPosteriorOfRow(const QPosterior& call, const BlockRows& rows)
      : call(call), rows(rows), token(rows.row()) {
    const Chain& chain = call.chain;
    if (token >= chain.num_tokens) return;
    const int64_t x0 = call.x0[token], x_t = call.x_t[token];
    const StepCoefficients* const step = chain.step(token / chain.run_length);
    if (!step || !chain.is_class(x0) || !chain.is_class(x_t)) return;
    of = {*step, chain.vector<Real>(), x0, x_t};
    good = of.is_possible;
    log_leave = any_log(of.leave);
    log_stay = any_log(of.stay);
    log_kept = of.spread(x0) == 0 ? log_of_double<Real>(step->bar_keep) : any_log(of.truth(x0));
  }

  __device__ void run() const {
    const int64_t num_classes = call.chain.num_classes;
    rows.each_part([&](int start) {
      Real values[kNumbers];
      rows.each_number(start, [&](int i, int j) {
        values[i] = NAN;
        if (good && j < num_classes) values[i] = of.stays() ? of.fixed(j) : log_q(j);
      });
      rows.write(static_cast<Element*>(call.out) + token * num_classes, start,
                 token < call.chain.num_tokens ? num_classes : 0, values);
    });
  }

 private:
  __device__ Real log_q(int j) const {
    return (j == of.x_t ? log_stay : log_leave) + (j == of.x0 ? log_kept : any_log(of.spread(j)));
  }
};

template <class Element>
__global__ void __launch_bounds__(kMostThreads, 1)
    q_posterior_of_rows(const QPosterior call,
                        const typename QPosteriorOfRow<Element>::BlockRows rows) {
  QPosteriorOfRow<Element>(call, rows).run();
}

template <class Element>
const char* launch(const QPosterior& call, void* on) {
  const auto stream = static_cast<cudaStream_t>(on);
  const typename QPosteriorOfRow<Element>::BlockRows rows(call.chain.num_classes, {call.out});
  D3PM_LAUNCH((q_posterior_of_rows<Element>), rows.blocks(call.chain.num_tokens), rows.block(), 0,
              stream, call, rows);
  return last_error();
}

template <class Element, bool kHasPi, bool kIsGradient>
const char* start_whole(
    const PPosterior& call, const Vector<typename Memory<Element>::Real>& vector,
    const typename PosteriorOfWholeRow<Element, kHasPi, kIsGradient>::BlockRows& rows,
    cudaStream_t stream) {
  using OfRow = PosteriorOfWholeRow<Element, kHasPi, kIsGradient>;
  const int64_t blocks = rows.blocks(call.chain.num_tokens);
  const int times = times_of(blocks);
  const size_t bytes = OfRow::kInputs * rows.shared_bytes() +
                       times * rows.in_block() * sizeof(typename OfRow::Known);
  const auto kernel = posterior_of_whole_rows<Element, kHasPi, kIsGradient>;
  allow_shared(kernel, bytes);
  D3PM_LAUNCH(kernel, (blocks + times - 1) / times, rows.block(), bytes, stream, call, vector,
              Runs(call.chain.run_length), rows, times);
  return last_error();
}

template <class Element, bool kHasPi, bool kIsGradient>
const char* start_few(const PPosterior& call, const Vector<typename Memory<Element>::Real>& vector,
                      const FewClasses<Element>& layout, cudaStream_t stream) {
  const size_t bytes = (kIsGradient ? 2 : 1) * layout.shared_bytes();
  const auto kernel = layout.classes == 27
                          ? posterior_of_few_classes<Element, kHasPi, kIsGradient, 27>
                          : posterior_of_few_classes<Element, true, kIsGradient, 0>;
  allow_shared(kernel, bytes);
  D3PM_LAUNCH(kernel, layout.blocks(call.chain.num_tokens), layout.kRows, bytes, stream, call,
              vector, Runs(call.chain.run_length), layout);
  return last_error();
}

template <class Element, bool kHasPi, bool kIsGradient>
const char* start(const PPosterior& call, void* on) {
  const auto stream = static_cast<cudaStream_t>(on);
  const int64_t classes = call.chain.num_classes;
  const auto vector = call.chain.vector<typename Memory<Element>::Real>();
  const std::initializer_list<const void*> starts = {call.logits, call.upstream, call.out,
                                                     vector.pi};
  if constexpr (sizeof(Element) < 8) {
    if (classes <= FewClasses<Element>::kMost)
      return start_few<Element, kHasPi, kIsGradient>(call, vector, {classes, starts}, stream);
    const typename PosteriorOfWholeRow<Element, kHasPi, kIsGradient>::BlockRows rows(classes,
                                                                                     starts);
    if (rows.is_whole())
      return start_whole<Element, kHasPi, kIsGradient>(call, vector, rows, stream);
  }
  const typename PosteriorOfLongRow<Element>::BlockRows rows(classes, starts);
  D3PM_LAUNCH((posterior_of_long_rows<Element>), rows.blocks(call.chain.num_tokens), rows.block(),
              0, stream, call, vector, Runs(call.chain.run_length), rows);
  return last_error();
}

template <class Element, bool kHasPi>
const char* start(const PPosterior& call, void* stream) {
  return call.upstream ? start<Element, kHasPi, true>(call, stream)
                       : start<Element, kHasPi, false>(call, stream);
}

template <class Element>
const char* launch(const PPosterior& call, void* stream) {
  return call.chain.pi ? start<Element, true>(call, stream) : start<Element, false>(call, stream);
}

template const char* launch<D3PM_ELEMENT>(const QPosterior&, void*);
template const char* launch<D3PM_ELEMENT>(const PPosterior&, void*);

}  // namespace d3pm::device
