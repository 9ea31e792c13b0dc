// How rows of numbers are laid out over threads.
#pragma once

#include <initializer_list>
#include <type_traits>

#include "device.h"

namespace d3pm::device {

// Vectors of a row, one after the other by the threads that share it.
template <class Element, int kThreads, int kVectors>
struct RowPart {
  using Real = typename Memory<Element>::Real;
  static constexpr int kWidth = Pack<Element>::kSize;

  // The class of the first number of a thread's vector.
  static __device__ int64_t first(int64_t start, int vector) {
    return start + (static_cast<int64_t>(vector) * kThreads + threadIdx.x % kThreads) * kWidth;
  }

  static __device__ void read(const Element* row, int64_t start, int64_t end, bool aligned,
                              Real* to, Real fill = -INFINITY) {
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

  static __device__ void write(Element* row, int64_t start, int64_t end, bool aligned,
                               const Real* from) {
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
};

// A block's rows, kThreads threads each.
template <class Element, int kThreads, int kVectors>
struct RowsOfBlock {
  static constexpr int kBlock = kThreads < 128 ? 128 : kThreads;
  static constexpr int kRows = kBlock / kThreads;
  static constexpr int kNumbers = kVectors * Pack<Element>::kSize;
  static constexpr int64_t kClasses = int64_t{kThreads} * kNumbers;

  static int64_t blocks(int64_t num_rows) { return (num_rows + kRows - 1) / kRows; }

  static __device__ int64_t row() { return int64_t{blockIdx.x} * kRows + threadIdx.x / kThreads; }
};

inline bool is_aligned(std::initializer_list<const void*> rows, int64_t bytes_of_row) {
  uintptr_t bits = static_cast<uintptr_t>(bytes_of_row);
  for (const void* row : rows) bits |= reinterpret_cast<uintptr_t>(row);
  return bits % 16 == 0;
}

// Calls start(threads, vectors), two std::integral_constant, for rows of so many classes: a thread
// holds 32 numbers, 8 in double, of which the longest rows take more than one turn.
template <class Element, class Start>
void with_layout(int64_t num_classes, const Start& start) {
  constexpr int kNumbers = sizeof(Element) == 8 ? 8 : 32;
  const std::integral_constant<int, kNumbers / Pack<Element>::kSize> vectors;
  if (num_classes <= 8 * kNumbers)
    start(std::integral_constant<int, 8>(), vectors);
  else if (num_classes <= 32 * kNumbers)
    start(std::integral_constant<int, 32>(), vectors);
  else if (num_classes <= 128 * kNumbers)
    start(std::integral_constant<int, 128>(), vectors);
  else
    start(std::integral_constant<int, 256>(), vectors);
}

}  // namespace d3pm::device
