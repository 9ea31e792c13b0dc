// What both modules take from Python: addresses as integers, dtypes by name, records as tuples.
#pragma once

#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

#include "calls.h"
#include "elements.h"

namespace d3pm {

inline Type parse(const std::string& dtype) {
  if (dtype == "torch.float32") return Type::float32;
  if (dtype == "torch.float64") return Type::float64;
  if (dtype == "torch.bfloat16") return Type::bfloat16;
  if (dtype == "torch.float16") return Type::float16;
  throw std::invalid_argument("no kernel for " + dtype);
}

// For functions that change nothing but the memory they are given: other threads run meanwhile.
using Unlocked = pybind11::call_guard<pybind11::gil_scoped_release>;

}  // namespace d3pm

namespace pybind11::detail {

// A member of a record, whatever its type, from a number, an address or the tuple of a record.
struct Member {
  handle source;

  template <class T>
  operator T() const {
    if constexpr (std::is_pointer_v<T>)
      return reinterpret_cast<T>(cast<uintptr_t>(source));
    else
      return cast<T>(source);
  }
};

template <size_t>
using MemberAt = Member;

template <class Record, class Indices, class = void>
constexpr bool has_members = false;
template <class Record, size_t... i>
constexpr bool has_members<Record, std::index_sequence<i...>,
                           std::void_t<decltype(Record{std::declval<MemberAt<i>>()...})>> = true;

// How many members a record has.
template <class Record, size_t count = 1>
constexpr size_t num_members() {
  if constexpr (has_members<Record, std::make_index_sequence<count + 1>>)
    return num_members<Record, count + 1>();
  else
    return count;
}

template <class Record>
constexpr bool is_record = std::is_class_v<Record> && std::is_aggregate_v<Record> &&
                           std::is_trivially_copyable_v<Record> && !std::is_empty_v<Record>;

// A record, from the tuple of its members.
template <class Record>
struct type_caster<Record, enable_if_t<is_record<Record>>> {
  PYBIND11_TYPE_CASTER(Record, const_name("tuple"));

  bool load(handle source, bool) {
    constexpr size_t count = num_members<Record>();
    if (!isinstance<tuple>(source) || PyTuple_GET_SIZE(source.ptr()) != count) return false;
    value = make(source, std::make_index_sequence<count>());
    return true;
  }

 private:
  template <size_t... i>
  static Record make(handle source, std::index_sequence<i...>) {
    return {Member{PyTuple_GET_ITEM(source.ptr(), i)}...};
  }
};

}  // namespace pybind11::detail
