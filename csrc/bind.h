// What both modules take from Python: addresses as integers, dtypes by name, records as tuples.
#pragma once

#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>

#include "calls.h"
#include "elements.h"

namespace d3pm {

// A tensor's memory, as a pointer of whatever type is asked for.
struct Address {
  uintptr_t value;

  template <class T>
  operator T*() const {
    return reinterpret_cast<T*>(value);
  }
};

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

template <>
struct type_caster<d3pm::Address> {
  PYBIND11_TYPE_CASTER(d3pm::Address, const_name("int"));

  bool load(handle source, bool convert) {
    make_caster<uintptr_t> number;
    if (!number.load(source, convert)) return false;
    value.value = cast_op<uintptr_t>(number);
    return true;
  }
};

// A record, from the tuple of its members.
template <class Record, class... Members>
struct RecordCaster {
  PYBIND11_TYPE_CASTER(Record, const_name("tuple"));

  bool load(handle source, bool convert) {
    using Tuple = std::tuple<Members...>;
    make_caster<Tuple> tuple;
    if (!tuple.load(source, convert)) return false;
    value = std::apply([](const Members&... members) { return Record{members...}; },
                       cast_op<Tuple>(std::move(tuple)));
    return true;
  }
};

template <>
struct type_caster<d3pm::Chain>
    : RecordCaster<d3pm::Chain, int64_t, int64_t, d3pm::Address, int64_t, d3pm::Address, int64_t,
                   d3pm::Address, int64_t> {
  // The tuple has the number of runs in place of their length.
  bool load(handle source, bool convert) {
    if (!RecordCaster::load(source, convert)) return false;
    const int64_t num_runs = value.run_length;
    value.run_length = num_runs > 0 ? value.num_tokens / num_runs : 0;
    return true;
  }
};

template <>
struct type_caster<d3pm::Model> : RecordCaster<d3pm::Model, bool, bool> {};

template <>
struct type_caster<d3pm::Weights> : RecordCaster<d3pm::Weights, double, double> {};

template <>
struct type_caster<d3pm::Loss>
    : RecordCaster<d3pm::Loss, d3pm::Chain, d3pm::Model, d3pm::Address, d3pm::Address,
                   d3pm::Address, d3pm::Address, d3pm::Weights, bool, double, d3pm::Address,
                   d3pm::Address, d3pm::Address> {};

template <>
struct type_caster<d3pm::Shaping>
    : RecordCaster<d3pm::Shaping, d3pm::Address, double, double, int64_t, double> {};

}  // namespace pybind11::detail
