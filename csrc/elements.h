// The types of numbers that tensors may hold.
#pragma once

#include <cstdint>

namespace d3pm {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

enum class Type { float32, float64, bfloat16, float16 };

// Calls body(element) with an element of a type.
template <class Body>
auto with_element(Type type, const Body& body) {
  switch (type) {
    case Type::float32: return body(float{});
    case Type::float64: return body(double{});
    case Type::bfloat16: return body(BFloat16{});
    default: return body(Float16{});
  }
}

}  // namespace d3pm
