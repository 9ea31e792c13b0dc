// Rows of p_sample that are read once. A thread has a run of neighbouring classes. It sums them by
// vectors, of which one is drawn in double, and then one of its classes.
#pragma once

#include "p_sample_tokens.h"

namespace d3pm::device {

template <class Element, int kThreads>
struct PSampleOfWholeRow {
  static constexpr int kNumbers = 2 * kMostNumbers<Element>;
  using BlockRows = Rows<Element, kNumbers, kThreads>;
  using Real = typename BlockRows::Real;
  static constexpr int kWidth = BlockRows::kWidth, kVectors = BlockRows::kVectors;
  static_assert(kVectors <= 32);
  static constexpr int kNoVector = 0x7fffffff;

  const BlockRows& rows;
  const int num_classes, forbidden;
  const RowOfDraw<Real> row;
  Element* const staged;

  __device__ PSampleOfWholeRow(const PSample& call, const BlockRows& rows,
                               const RowOfDraw<Real>& row, Element* staged)
      : rows(rows),
        num_classes(static_cast<int>(call.chain.num_classes)),
        forbidden(static_cast<int>(call.chain.forbidden)),
        row(row),
        staged(staged) {}

  // Elements of shared memory from one row to the next: behind the run of each thread is a vector
  // that keeps the banks apart.
  static D3PM_HOST_DEVICE int pitch(int threads) { return threads * (kVectors + 1) * kWidth; }

  __device__ void run(const Element* logits, RowOfDraw<Real>& results) const {
    stage(logits);
    const Real logit_xt = row.x_t == forbidden ? Real(-INFINITY) : logit(row.x_t);
    rows.meet();
    if (row.reads && rows.is_first_thread()) {
      staged[place(row.x_t)] = Memory<Element>::narrow(-INFINITY);
      if (forbidden >= 0) staged[place(forbidden)] = Memory<Element>::narrow(-INFINITY);
    }
    rows.meet();
    Real e[kNumbers];
    const Exponential<Real> exp(take(logit_xt, e));
#pragma unroll
    for (Real& number : e) number = exp(number);
    const Real mass_xt = exp(logit_xt) * row.tilt;

    // The running sums of vectors, in double: 1e-9 keeps its share beside 1.
    const int of_xt = row.x_t / kWidth - first_vector();
    double running[kVectors];
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      Real part = v == of_xt ? mass_xt : Real(0);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) part += e[v * kWidth + i];
      running[v] = part + (v ? running[v - 1] : 0.0);
    }
    const double own = running[kVectors - 1];
    double total;
    const double before = sum_before(rows.threads(), own, total);
    draw(exp, running, row.draw * total - before, mass_xt, results);
    if (!rows.is_first_thread()) return;
    results.mass_xt = mass_xt;
    results.total = total;
  }

 private:
  static __device__ int place(int j) {
    const unsigned run = static_cast<unsigned>(j) / (kVectors * kWidth);
    return j + static_cast<int>(run) * kWidth;
  }

  // That of this thread's vector among those of all threads which are copied together.
  __device__ int place_of_copy(int v) const {
    constexpr int kOfRun = kThreads && kThreads < kVectors ? kVectors / kThreads : 0;  // copies
    const unsigned threads = rows.threads();  // where a run is no longer than a copy, whole runs
    const unsigned step = (threads + (kOfRun ? 0 : threads / kVectors)) * kWidth;
    return place(rows.first(0, 0)) + v * step + (kOfRun ? v / (kOfRun ? kOfRun : 1) * kWidth : 0);
  }

  __device__ int first_vector() const { return rows.lane() * kVectors; }

  __device__ Real logit(int j) const { return Memory<Element>::widen(staged[place(j)]); }

  // Copies the row, behind it -inf; zeros where it is not to be read.
  __device__ void stage(const Element* logits) const {
    const Element last = Memory<Element>::narrow(-INFINITY), zero = Memory<Element>::narrow(0);
    const int end = rows.threads() * kNumbers;
    if (rows.aligned && num_classes == end) {
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        copy_async(staged + place_of_copy(v), logits + rows.first(0, v), row.reads);
      }
    } else {
      const int step = rows.aligned ? kWidth : 1;
#pragma unroll 1
      for (int j = rows.lane() * step; j < end; j += rows.threads() * step) {
        Element* const to = staged + place(j);
        if (rows.aligned && j < num_classes) {
          copy_async(to, logits + j, row.reads);
        } else {
#pragma unroll 1
          for (int i = 0; i < step; ++i)
            to[i] = j >= num_classes ? last : row.reads ? logits[j] : zero;
        }
      }
    }
    wait_for_copies();
    rows.meet();
  }

  // Fills in the logits of this thread, and returns the largest of the row.
  __device__ Real take(Real logit_xt, Real* logits) const {
    Real tops[4] = {logit_xt, logit_xt, logit_xt, logit_xt};
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const auto pack = *vector(v);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        logits[v * kWidth + i] = pack.widened(i);
        tops[i % 4] = Max()(tops[i % 4], logits[v * kWidth + i]);
      }
    }
    return rows.reduce(Max()(Max()(tops[0], tops[1]), Max()(tops[2], tops[3])), Max());
  }

  // Of this thread.
  __device__ const Pack<Element>* vector(int v) const {
    return reinterpret_cast<const Pack<Element>*>(staged) + rows.lane() * (kVectors + 1) + v;
  }

  // The first vector whose running sum passes the target, or where rounding leaves none, the last
  // one that has any mass.
  __device__ void draw(const Exponential<Real>& exp, const double (&running)[kVectors],
                       double target, Real mass_xt, RowOfDraw<Real>& results) const {
    const double own = running[kVectors - 1];
    const bool passes = own > target;
    target = !passes ? below(own) : target > 0 ? target : 0;
    double into;
    const int index = passed(running, target, into);
    int key = kNoVector;
    if (own > 0) key = passes ? first_vector() + index : kNoVector - 1 - (first_vector() + index);
    const int drawn = -rows.reduce(-key, Max());
    if (own > 0 && drawn == key) results.of_model = class_of(exp, index, into, mass_xt);
  }

  // One of the classes of a vector.
  __device__ int class_of(const Exponential<Real>& exp, int v, double into, Real mass_xt) const {
    const auto pack = *vector(v);
    const int first = (first_vector() + v) * kWidth;
    Real masses[kWidth];
#pragma unroll
    for (int i = 0; i < kWidth; ++i) masses[i] = exp(pack.widened(i));
    return first + one_of(masses, row.x_t - first, mass_xt, into);
  }
};

// The rows of a group of threads, `times` after each other. A token is one thread's, before and
// after its row is read.
template <class Element, int kThreads>
__global__ void __launch_bounds__(kMostThreads, 1)
    p_sample_of_whole_rows(const PSample call, const DrawVector vector,
                           const typename PSampleOfWholeRow<Element, kThreads>::BlockRows rows,
                           const int times) {
  using OfRow = PSampleOfWholeRow<Element, kThreads>;
  using Row = RowOfDraw<typename OfRow::Real>;
  D3PM_DYNAMIC_SHARED(Element, shared);
  const int count = times * rows.rows_at_a_time(), pitch = OfRow::pitch(rows.threads());
  Row* const of_tokens =
      reinterpret_cast<Row*>(shared + rows.in_block() * pitch) + rows.group_in_block() * count;
  Element* const staged = shared + rows.row_in_block() * pitch;
  const int64_t first = rows.group() * count;
  const int own = rows.in_group();
  const DrawnToken<typename OfRow::Real> token(call, vector,
                                               own < count ? first + own : call.chain.num_tokens);
  if (own < count) of_tokens[own] = token.row();
  rows.meet();
  for (int time = 0; time < times; ++time) {  // the same for all threads: they stay together
    const int i = time * rows.rows_at_a_time() + rows.row_in_group();
    Row& row = of_tokens[i];
    if (!rows.all(!row.reads)) {
      const int64_t at = first + i < call.chain.num_tokens ? first + i : 0;
      OfRow(call, rows, row, staged)
          .run(static_cast<const Element*>(call.logits) + at * call.chain.num_classes, row);
    }
    rows.meet();
  }
  token.write(of_tokens[own < count ? own : 0]);
}

}  // namespace d3pm::device
