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
// parameter: four times the code would be built.
template <class Element, int kNumbers>
struct Rows {
  using Real = typename Memory<Element>::Real;
  static constexpr int kWidth = Pack<Element>::kSize;
  static constexpr int kVectors = kNumbers / kWidth;

  int threads;
  int64_t num_classes;
  bool aligned;

  Rows(int64_t num_classes, std::initializer_list<const void*> starts)
      : threads(num_classes <= 8 * kMostNumbers<Element>     ? 8
                : num_classes <= 32 * kMostNumbers<Element>  ? 32
                : num_classes <= 128 * kMostNumbers<Element> ? 128
                                                             : kMostThreads),
        num_classes(num_classes) {
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
    return int64_t{blockIdx.x} * (blockDim.x / threads) + threadIdx.x / threads;
  }

  __device__ bool is_first_thread() const { return threadIdx.x % threads == 0; }

  __device__ bool is_whole() const { return num_classes <= part(); }

  // The class of the first number of a thread's vector.
  __device__ int64_t first(int64_t start, int vector) const {
    return start + (static_cast<int64_t>(vector) * threads + threadIdx.x % threads) * kWidth;
  }

  template <class Body>
  __device__ void each_part(const Body& body) const {
    for (int64_t start = 0; start < num_classes; start += part()) body(start);
  }

  template <class Body>
  __device__ void each_number(int64_t start, const Body& body) const {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int64_t j = first(start, v);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) body(v * kWidth + i, j + i);
    }
  }

  template <class Number, class Fold>
  __device__ Number reduce(Number value, Fold fold) const {
    return device::reduce(threads, value, fold);
  }

  __device__ void read(const Element* row, int64_t start, int64_t end, Real* to,
                       Real fill = -INFINITY) const {
    Pack<Element> packs[kVectors];
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int64_t j = first(start, v);
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
  __device__ void read_logits(const Element* row, int64_t start, int64_t end, int64_t forbidden,
                              Real* to) const {
    read(row, start, end, to);
    const int at = place(forbidden - start);
#pragma unroll
    for (int i = 0; i < kNumbers; ++i)
      if (i == at) to[i] = -INFINITY;
  }

  // One of them.
  __device__ static Real logit(const Element* row, int64_t j, int64_t end, int64_t forbidden) {
    return j < end && j != forbidden ? Memory<Element>::widen(row[j]) : Real(-INFINITY);
  }

  __device__ void write(Element* row, int64_t start, int64_t end, const Real* from) const {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int64_t j = first(start, v);
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
  // Which of its numbers a thread has for a class of a part; negative where it is another's.
  __device__ int place(int64_t j) const {
    if (j < 0 || j >= part()) return -1;
    const int vector = static_cast<int>(j) / kWidth, lane = threadIdx.x % threads;
    return vector % threads == lane ? vector / threads * kWidth + static_cast<int>(j) % kWidth : -1;
  }

  __device__ int64_t part() const { return int64_t{threads} * kNumbers; }
};

}  // namespace d3pm::device
