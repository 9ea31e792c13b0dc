// How rows of numbers are laid out over threads.
#pragma once

#include <initializer_list>

#include "device.h"

namespace d3pm::device {

// Of a row, that a thread holds at a time.
template <class Element>
constexpr int kMostNumbers = sizeof(Element) == 8 ? 8 : 32;

// As many rows after each other as leave every multiprocessor some blocks, at most 4.
inline int times_of(int64_t blocks) {
  const int64_t times = blocks / 512;
  return static_cast<int>(times < 1 ? 1 : times > 4 ? 4 : times);
}

// The rows of a block. The threads that share a row, a power of two, take vectors of it in turn.
// A row longer than what they hold is gone through part by part. How many they are is a template
// parameter only where that pays, else 0: every number is as much code. Where a row begins takes 64
// bits; its classes are less than 2^31.
template <class Element, int kNumbers, int kThreads = 0>
struct Rows {
  using Real = typename Memory<Element>::Real;
  static constexpr int kWidth = Pack<Element>::kSize;
  static constexpr int kVectors = kNumbers / kWidth;

  // Where a thread holds twice as many, half as many share a short row.
  static constexpr bool kTwice = kNumbers > kMostNumbers<Element>;
  static constexpr int kHeld = (kTwice ? 2 : 1) * kMostNumbers<Element>;
  static constexpr int kFew = kTwice ? 4 : 8, kMore = 4 * kFew;
  static_assert(kNumbers <= kHeld && kHeld <= 64);

  int log2_of_threads, num_classes;
  bool aligned;

  Rows(int64_t num_classes, std::initializer_list<const void*> starts)
      : log2_of_threads(log2_threads_for(num_classes)), num_classes(static_cast<int>(num_classes)) {
    uintptr_t bits = static_cast<uintptr_t>(num_classes) * sizeof(Element);
    for (const void* start : starts) bits |= reinterpret_cast<uintptr_t>(start);
    aligned = bits % 16 == 0;
  }

  static int log2_threads_for(int64_t num_classes) {
    static_assert(kMostThreads == 256);
    const int log2_few = kTwice ? 2 : 3;
    if (num_classes <= kFew * kHeld) return log2_few;
    if (num_classes <= kMore * kHeld) return log2_few + 2;
    return num_classes <= 128 * kHeld ? 7 : 8;
  }

  D3PM_HOST_DEVICE int threads() const { return kThreads ? kThreads : 1 << log2_of_threads; }

  D3PM_HOST_DEVICE int block() const { return threads() < 128 ? 128 : threads(); }

  // The rows of a block.
  D3PM_HOST_DEVICE int in_block() const { return over(block()); }

  int64_t blocks(int64_t num_rows) const { return (num_rows + in_block() - 1) / in_block(); }

  __device__ int64_t row() const { return int64_t{blockIdx.x} * over(blockDim.x) + row_in_block(); }
  __device__ int row_in_block() const { return over(threadIdx.x); }

  __device__ bool is_first_thread() const { return lane() == 0; }

  // The threads that go through rows together, a warp or, where a row has more, a block; their
  // rows at a time; and the number of these threads and of this one among them.
  D3PM_HOST_DEVICE int together() const { return threads() > kWarp ? threads() : kWarp; }
  D3PM_HOST_DEVICE int rows_at_a_time() const { return over(together()); }
  __device__ int64_t group() const {
    return int64_t{blockIdx.x} * (block() / together()) + group_in_block();
  }
  __device__ int group_in_block() const {
    const int log2_of_warp = 5;
    static_assert(1 << log2_of_warp == kWarp && kThreads <= kWarp);
    return threadIdx.x >>
           (kThreads || log2_of_threads < log2_of_warp ? log2_of_warp : log2_of_threads);
  }
  __device__ int in_group() const { return threadIdx.x & (together() - 1); }
  __device__ int row_in_group() const { return over(in_group()); }

  D3PM_HOST_DEVICE bool is_whole() const { return num_classes <= part(); }

  // The class of the first number of a thread's vector.
  __device__ int first(int start, int vector) const {
    return start + (vector * threads() + lane()) * kWidth;
  }

  // This thread's part of a row; its vectors lie a multiple of step() apart.
  template <class Number>
  __device__ Number* own(Number* row) const {
    return row + lane() * kWidth;
  }
  D3PM_HOST_DEVICE int step() const { return threads() * kWidth; }

  template <class Body>
  __device__ void each_part(const Body& body) const {
    for (int start = 0; start < num_classes; start += part()) body(start);
  }

  template <class Body>
  __device__ void each_number(int start, const Body& body) const {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int j = first(start, v);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) body(v * kWidth + i, j + i);
    }
  }

  template <class Number, class Fold>
  __device__ Number reduce(Number value, Fold fold) const {
    return device::reduce(threads(), value, fold);
  }

  template <class Number, int kCount, class Fold>
  __device__ void reduce(Number (&values)[kCount], Fold fold) const {
    device::reduce(threads(), values, fold);
  }

  // Whether something holds for all rows of a warp.
  __device__ static bool all(bool holds) { return __all_sync(0xffffffff, holds); }

  // Elements of shared memory from one whole row to the next, free of bank conflicts, and bytes of
  // all of a block.
  D3PM_HOST_DEVICE int pitch() const { return part() + (threads() < 8 ? threads() * kWidth : 0); }
  D3PM_HOST_DEVICE size_t shared_bytes() const {
    return size_t(in_block()) * pitch() * sizeof(Element);
  }

  // This thread's row there.
  __device__ Element* staged(Element* rows) const { return rows + over(threadIdx.x) * pitch(); }

  // Copies a whole row of `end` numbers there, behind them -inf; zeros where it is not to be read.
  // meet() comes before its use.
  __device__ void stage(const Element* row, int end, bool reads, Element* to) const {
    begin_stage(row, end, reads, to);
    wait_for_copies();
  }

  // The same, of which the copies are yet to be waited for; behind them is `fill`.
  __device__ void begin_stage(const Element* row, int end, bool reads, Element* to,
                              Real fill = -INFINITY) const {
    const Element last = Memory<Element>::narrow(fill), zero = Memory<Element>::narrow(0);
    if (aligned && end == part()) {
#pragma unroll
      for (int v = 0; v < kVectors; ++v)
        copy_async(own(to) + v * step(), own(row) + v * step(), reads);
    } else if (aligned) {
      Pack<Element> behind;
      for (Element& each : behind.values) each = last;
#pragma unroll 1
      for (int j = first(0, 0); j < part(); j += step()) {
        if (j < end)
          copy_async(to + j, row + j, reads);
        else
          *reinterpret_cast<Pack<Element>*>(to + j) = behind;
      }
    } else {
#pragma unroll 1
      for (int j = lane(); j < part(); j += threads())
        to[j] = j >= end ? last : reads ? row[j] : zero;
    }
  }

  // The numbers of this thread, and the largest of them.
  __device__ Real take_largest(const Element* staged, Real* to) const {
    auto tops = Pair<Element>::narrow(-INFINITY, -INFINITY), others = tops;
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const auto pack = *reinterpret_cast<const Pack<Element>*>(own(staged) + v * step());
#pragma unroll
      for (int i = 0; i < kWidth; i += 2) {
        const auto pair = pack.pair(i);
        (i % 4 ? others : tops) = max(i % 4 ? others : tops, pair);
        for (int k = 0; k < 2; ++k) to[v * kWidth + i + k] = pair.widened(k);
      }
    }
    tops = max(tops, others);
    return Max()(tops.widened(0), tops.widened(1));
  }

  __device__ void take(const Element* staged, Real* to) const {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const auto pack = *reinterpret_cast<const Pack<Element>*>(own(staged) + v * step());
#pragma unroll
      for (int i = 0; i < kWidth; ++i) to[v * kWidth + i] = pack.widened(i);
    }
  }

  // Reads four numbers of a vector of all classes where this thread has those from `number` on, and
  // leaves what is behind its end.
  __device__ void read_four(const Real* of_classes, int number, int end, Real (&to)[4]) const {
    constexpr int kOfVector = Pack<Real>::kSize;
#pragma unroll
    for (int k = 0; k < 4; k += kOfVector) {
      const int j = first(0, (number + k) / kWidth) + (number + k) % kWidth;
      if (aligned) {
        if (j >= end) continue;
        const auto pack = *reinterpret_cast<const Pack<Real>*>(of_classes + j);
#pragma unroll
        for (int n = 0; n < kOfVector; ++n) to[k + n] = pack.values[n];
      } else {
#pragma unroll
        for (int n = 0; n < kOfVector; ++n)
          if (j + n < end) to[k + n] = of_classes[j + n];
      }
    }
  }

  // Waits for the threads of the row, and makes known what each has written.
  __device__ void meet() const {
    if (threads() > kWarp)
      __syncthreads();
    else
      __syncwarp();
  }

  __device__ void read(const Element* row, int start, int end, Real* to,
                       Real fill = -INFINITY) const {
    Pack<Element> packs[kVectors];
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int j = first(start, v);
      if (aligned && j < end) {
        packs[v] = *reinterpret_cast<const Pack<Element>*>(row + j);
      } else {
#pragma unroll
        for (int i = 0; i < kWidth; ++i)
          packs[v].values[i] = j + i < end ? row[j + i] : Memory<Element>::narrow(fill);
      }
    }
#pragma unroll
    for (int v = 0; v < kVectors; ++v)
#pragma unroll
      for (int i = 0; i < kWidth; ++i)
        to[v * kWidth + i] = Memory<Element>::widen(packs[v].values[i]);
  }

  // Reads a row of so many logits, -inf in place of that of the class `forbidden`.
  __device__ void read_logits(const Element* row, int start, int end, int forbidden,
                              Real* to) const {
    read(row, start, end, to);
    hide(place(forbidden - start), to);
  }

  // The place of a class of a part among the numbers of a thread, as a bit; 0 where it is another's
  // or none is negative.
  __device__ uint64_t place(int j) const {
    const uint32_t vector = static_cast<uint32_t>(j) / kWidth;
    const uint32_t number = over(vector) * kWidth + static_cast<uint32_t>(j) % kWidth;
    return lane() == (vector & (threads() - 1)) && number < kNumbers ? uint64_t{1} << number : 0;
  }

  // Puts -inf in some places.
  __device__ static void hide(uint64_t places, Real* numbers) {
#pragma unroll
    for (int i = 0; i < kNumbers; ++i)
      if (places >> i & 1) numbers[i] = -INFINITY;
  }

  // One of them.
  __device__ static Real logit(const Element* row, int j, int end, int forbidden) {
    return static_cast<unsigned>(j) < static_cast<unsigned>(end) && j != forbidden
               ? Memory<Element>::widen(row[j])
               : Real(-INFINITY);
  }

  // Lays down the numbers of this thread.
  __device__ void put(const Real* from, Element* to) const {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      Pack<Element> pack;
#pragma unroll
      for (int i = 0; i < kWidth; ++i)
        pack.values[i] = Memory<Element>::narrow(from[v * kWidth + i]);
      *reinterpret_cast<Pack<Element>*>(own(to) + v * step()) = pack;
    }
  }

  // Writes a whole row, where `writes`; `staged` is its place in shared memory.
  __device__ void write_whole(Element* row, int end, bool writes, const Real* from,
                              Element* staged) const {
    if (aligned && end == part()) {
      if (writes) put(from, row);
      return;
    }
    put(from, staged);
    meet();
    if (!writes) return;
    if (aligned) {
#pragma unroll 1
      for (int j = first(0, 0); j < end; j += step())
        *reinterpret_cast<Pack<Element>*>(row + j) =
            *reinterpret_cast<const Pack<Element>*>(staged + j);
    } else {
#pragma unroll 1
      for (int j = lane(); j < end; j += threads()) row[j] = staged[j];
    }
  }

  // Writes one number to all of a whole row.
  __device__ void fill(Element* row, int end, Real value) const {
    Pack<Element> pack;
    for (Element& each : pack.values) each = Memory<Element>::narrow(value);
    if (aligned && end == part()) {
#pragma unroll
      for (int v = 0; v < kVectors; ++v)
        *reinterpret_cast<Pack<Element>*>(own(row) + v * step()) = pack;
    } else if (aligned) {
#pragma unroll 1
      for (int j = first(0, 0); j < end; j += step())
        *reinterpret_cast<Pack<Element>*>(row + j) = pack;
    } else {
#pragma unroll 1
      for (int j = lane(); j < end; j += threads()) row[j] = pack.values[0];
    }
  }

  __device__ void write(Element* row, int start, int end, const Real* from) const {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int j = first(start, v);
      Pack<Element> pack;
#pragma unroll
      for (int i = 0; i < kWidth; ++i)
        pack.values[i] = Memory<Element>::narrow(from[v * kWidth + i]);
      if (aligned && j < end) {
        *reinterpret_cast<Pack<Element>*>(row + j) = pack;
      } else {
#pragma unroll
        for (int i = 0; i < kWidth; ++i)
          if (j + i < end) row[j + i] = pack.values[i];
      }
    }
  }

  __device__ unsigned lane() const { return threadIdx.x & (threads() - 1); }

 private:
  // A number over that of the threads.
  D3PM_HOST_DEVICE unsigned over(unsigned n) const {
    return kThreads ? n / kThreads : n >> log2_of_threads;
  }

  D3PM_HOST_DEVICE int part() const { return threads() * kNumbers; }
};

}  // namespace d3pm::device
