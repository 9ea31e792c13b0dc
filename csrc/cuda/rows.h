// How rows of numbers are laid out over threads.
#pragma once

#include <initializer_list>

#include "device.h"

namespace d3pm::device {

// Of a row, that a thread holds at a time.
template <class Element>
constexpr int kMostNumbers = sizeof(Element) == 8 ? 8 : 32;

// The rows of a block. The threads that share a row, a power of two, take vectors of it in turn.
// A row longer than what they hold is gone through part by part. How many they are is no template
// parameter: four times the code would be built. Where a row begins takes 64 bits; its classes are
// less than 2^31.
template <class Element, int kNumbers>
struct Rows {
  using Real = typename Memory<Element>::Real;
  static constexpr int kWidth = Pack<Element>::kSize;
  static constexpr int kVectors = kNumbers / kWidth;

  // Where a thread holds twice as many, half as many share a short row.
  static constexpr bool kTwice = kNumbers > kMostNumbers<Element>;
  static constexpr int kHeld = (kTwice ? 2 : 1) * kMostNumbers<Element>, kFewest = kTwice ? 2 : 3;
  static_assert(kNumbers <= kHeld && kHeld <= 64);

  int log2_threads, threads, num_classes;
  bool aligned;

  Rows(int64_t num_classes, std::initializer_list<const void*> starts)
      : log2_threads(num_classes <= 8 * kMostNumbers<Element>    ? kFewest
                     : num_classes <= 32 * kMostNumbers<Element> ? kFewest + 2
                     : num_classes <= 128 * kHeld                ? 7
                                                                 : 8),
        threads(1 << log2_threads),
        num_classes(static_cast<int>(num_classes)) {
    static_assert(1 << 8 == kMostThreads);
    uintptr_t bits = static_cast<uintptr_t>(num_classes) * sizeof(Element);
    for (const void* start : starts) bits |= reinterpret_cast<uintptr_t>(start);
    aligned = bits % 16 == 0;
  }

  int block() const { return threads < 128 ? 128 : threads; }

  int64_t blocks(int64_t num_rows) const {
    const int64_t of_block = block() / threads;
    return (num_rows + of_block - 1) / of_block;
  }

  __device__ int64_t row() const {
    return int64_t{blockIdx.x} * (blockDim.x >> log2_threads) + (threadIdx.x >> log2_threads);
  }

  __device__ bool is_first_thread() const { return lane() == 0; }

  D3PM_HOST_DEVICE bool is_whole() const { return num_classes <= part(); }

  // The class of the first number of a thread's vector.
  __device__ int first(int start, int vector) const {
    return start + (vector * threads + lane()) * kWidth;
  }

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
    return device::reduce(threads, value, fold);
  }

  // Whether something holds for all rows of a warp.
  __device__ static bool all(bool holds) { return __all_sync(0xffffffff, holds); }

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
    const uint32_t number = (vector >> log2_threads) * kWidth + static_cast<uint32_t>(j) % kWidth;
    return lane() == (vector & (threads - 1)) && number < kNumbers ? uint64_t{1} << number : 0;
  }

  // Puts -inf in some places.
  __device__ static void hide(uint64_t places, Real* numbers) {
#pragma unroll
    for (int i = 0; i < kNumbers; ++i)
      if (places >> i & 1) numbers[i] = -INFINITY;
  }

  // One of them.
  __device__ static Real logit(const Element* row, int j, int end, int forbidden) {
    return j < end && j != forbidden ? Memory<Element>::widen(row[j]) : Real(-INFINITY);
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

 private:
  __device__ unsigned lane() const { return threadIdx.x & (threads - 1); }

  D3PM_HOST_DEVICE int part() const { return threads * kNumbers; }
};

}  // namespace d3pm::device
