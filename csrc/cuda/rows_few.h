// Rows of few classes: a thread a row. Those of a warp lie in shared memory as they do in global
// memory, and go in and out 16 bytes at a time.
#pragma once

#include <initializer_list>

#include "device.h"

namespace d3pm::device {

// How the rows of a block are laid down: of so many classes that 48 KiB hold them, which is what a
// block has without asking. Behind them are zeros.
template <class Element>
struct FewClasses {
  static constexpr int kMost = 64;
  static constexpr int kRows = 128;
  static constexpr int kWidth = Pack<Element>::kSize;

  int classes, pad, inverse;
  bool aligned;

  FewClasses(int64_t num_classes, std::initializer_list<const void*> starts)
      : classes(static_cast<int>(num_classes)),
        // Rows of whole vectors would all begin in few of the banks.
        pad(num_classes % kWidth == 0 && num_classes > kWidth ? kWidth : 0),
        inverse((1 << 20) / classes + 1) {
    uintptr_t bits = 0;
    for (const void* start : starts) bits |= reinterpret_cast<uintptr_t>(start);
    aligned = bits % 16 == 0;
  }

  int64_t blocks(int64_t num_rows) const { return (num_rows + kRows - 1) / kRows; }

  D3PM_HOST_DEVICE int num_elements() const { return kRows * (classes + pad) + kMost; }
  size_t shared_bytes() const { return num_elements() * sizeof(Element); }
};

// The row of a thread of a warp: `row` to mark classes of, and for results, and the numbers to read
// it from, or zeros in its place. It begins in the middle of a pair where it is odd.
template <class Element, int kMostClasses>
struct RowOfThread {
  using Real = typename Memory<Element>::Real;
  static constexpr int kMost = (kMostClasses + 3) / 4 * 4;

  const int classes, is_odd;
  Element* const row;
  const Element* const numbers;

  // Whether something holds for all rows of the warp.
  static __device__ bool all(bool holds) { return __all_sync(0xffffffff, holds); }

  __device__ bool has(int j) const {
    return static_cast<unsigned>(j) < static_cast<unsigned>(classes);
  }

  __device__ Real operator[](int j) const { return Memory<Element>::widen(row[j]); }
  __device__ Real at(int j, Real otherwise) const { return has(j) ? (*this)[j] : otherwise; }

  __device__ void set(int j, Real value) const { row[j] = Memory<Element>::narrow(value); }
  __device__ void put(int j, Real value) const {
    if (has(j)) set(j, value);
  }

  // Calls body(i) for classes i to i + 3, for all four at a time.
  template <class Body>
  __device__ void each_four(const Body& body) const {
#pragma unroll
    for (int i = 0; i < kMost; i += 4) {
      if (i >= classes) break;
      body(i);
    }
  }

  // Fills in the numbers of all classes, and returns the largest.
  __device__ Real take(Real* to) const {
    Real tops[] = {-INFINITY, -INFINITY};
    if constexpr (sizeof(Element) == 2) {
      const auto* const words = reinterpret_cast<const Word*>(numbers - is_odd);
      auto both = Pair<Element>::narrow(-INFINITY, -INFINITY);
      each_two([&](int i) {
        const uint32_t word = words[i / 2], next = i + 2 < classes ? words[i / 2 + 1] : word;
        const Pair<Element> pair = {is_odd ? from_middle(word, next) : word};
        to[i] = pair.widened(0);
        to[i + 1] = pair.widened(1);
        if (i + 1 < classes)
          both = max(both, pair);
        else
          tops[0] = to[i];
      });
      tops[0] = Max()(tops[0], both.widened(0));
      tops[1] = both.widened(1);
    } else {
      each_two([&](int i) {
        for (int k = 0; k < 2; ++k) {
          to[i + k] = i + k < classes ? numbers[i + k] : Real(-INFINITY);
          tops[k] = Max()(tops[k], to[i + k]);
        }
      });
    }
    return Max()(tops[0], tops[1]);
  }

  // Makes the row of_class(i).
  template <class OfClass>
  __device__ void put_all(const OfClass& of_class) const {
    if constexpr (sizeof(Element) == 2) {
      auto* const words = reinterpret_cast<Word*>(row + is_odd);
      const auto pair = [&](int i) {
        return Pair<Element>::narrow(of_class(i), i + 1 < classes ? of_class(i + 1) : Real(0)).bits;
      };
      uint32_t word = pair(0);
      const uint32_t first = word;
      each_two([&](int i) {
        if (i + 1 >= classes) return;
        const uint32_t next = i + 2 < classes ? pair(i + 2) : word;
        words[i / 2] = is_odd ? from_middle(word, next) : word;
        word = next;
      });
      if (classes % 2) {
        const uint32_t left = is_odd ? first : word;
        row[is_odd ? 0 : classes - 1] = {static_cast<uint16_t>(left)};
      }
    } else {
      each_two([&](int i) {
        for (int j = i; j < i + 2; ++j)
          if (j < classes) row[j] = of_class(j);
      });
    }
  }

 private:
  // Calls body(i) for classes i and i + 1.
  template <class Body>
  __device__ void each_two(const Body& body) const {
#pragma unroll
    for (int i = 0; i < kMost; i += 2) {
      if (i >= classes) break;
      body(i);
    }
  }

  // The later half of a word, and the earlier one of the next.
  static __device__ uint32_t from_middle(uint32_t word, uint32_t next) {
    return word >> 16 | next << 16;
  }
};

// The rows of a warp, of kClasses classes, or where it is 0, of any number of them.
template <class Element, int kClasses>
struct RowsOfWarp {
  using Layout = FewClasses<Element>;
  using Row = RowOfThread<Element, kClasses ? kClasses : Layout::kMost>;
  static constexpr int kWidth = Layout::kWidth;
  static constexpr bool kHasNoPad = kClasses % kWidth != 0;

  const Layout& layout;
  const int64_t first;     // of the block
  const int before, left;  // rows of the block before those of the warp, and from these on
  const int lane, classes;
  Element *const rows, *const zeros;

  __device__ RowsOfWarp(const Layout& layout, int64_t num_rows, Element* shared)
      : layout(layout),
        first(int64_t{blockIdx.x} * Layout::kRows),
        before(threadIdx.x / kWarp * kWarp),
        left(static_cast<int>(num_rows - first < Layout::kRows ? num_rows - first : Layout::kRows) -
             before),
        lane(threadIdx.x % kWarp),
        classes(kClasses ? kClasses : layout.classes),
        rows(shared + before * pitch()),
        zeros(shared + Layout::kRows * pitch()) {}

  __device__ int64_t number() const { return first + threadIdx.x; }
  __device__ bool inside() const { return lane < left; }

  // Of this thread, where it is not to be read of zeros.
  __device__ Row row(bool reads = true) const {
    const int is_odd = classes % 2 ? lane % 2 : 0;
    Element* const own = rows + lane * pitch();
    return {classes, is_odd, own, reads ? own : zeros + is_odd};
  }

  // Begins to; they are there after finish_read().
  __device__ void begin_read(const void* from) const {
    each_vector(
        static_cast<const Element*>(from),
        [](bool is_there, const Element* logits, Element* row) {
          copy_async_if(is_there, row, logits);
        },
        [](const Element& logit, Element& to) { to = logit; });
    *reinterpret_cast<Pair<Element>*>(zeros + 2 * lane) = {};
  }

  static __device__ void finish_read() {
    wait_for_copies();
    __syncwarp();
  }

  __device__ void write(void* to) const {
    __syncwarp();
    each_vector(
        static_cast<Element*>(to),
        [](bool is_there, Element* grad, Element* row) {
          if (is_there) vector(grad) = vector(row);
        },
        [](Element& grad, Element& from) { grad = from; });
  }

  __device__ void write_zeros(void* to) const {
    each_vector(
        static_cast<Element*>(to),
        [](bool is_there, Element* grad, Element*) {
          if (is_there) vector(grad) = {};
        },
        [](Element& grad, Element&) { grad = Memory<Element>::narrow(0); });
  }

 private:
  __device__ int pitch() const { return kHasNoPad ? kClasses : layout.classes + layout.pad; }

  static __device__ Pack<Element>& vector(Element* at) {
    return *reinterpret_cast<Pack<Element>*>(at);
  }

  // Calls vector(is_there, there, here) for the vectors of the rows in `memory` and in shared
  // memory, or where not all are whole, one(there, here) for the numbers.
  template <class Number, class OfVector, class OfOne>
  __device__ void each_vector(Number* memory, const OfVector& vector, const OfOne& one) const {
    memory += first * classes + before * classes;
    if (layout.aligned && left >= kWarp) {
      const int own = lane * kWidth;
      memory += own;
#pragma unroll
      for (int begin = 0; begin < Row::kMost * kWarp; begin += kWarp * kWidth)
        vector(own < kWarp * classes - begin, memory + begin, rows + place(own, begin));
    } else {
      const int count = (left < kWarp ? left : kWarp) * classes;
#pragma unroll 1
      for (int i = lane; i < count; i += kWarp) one(memory[i], rows[place(i, 0)]);
    }
  }

  // Where a number of the rows lies.
  __device__ int place(int own, int begin) const {
    const int i = own + begin;
    return kHasNoPad ? i : i + (i * layout.inverse >> 20) * layout.pad;
  }
};

}  // namespace d3pm::device
