// For tests only: the vectors' mathematics on any bits, by a set of vector instructions. A
// program, to be built with a sanitizer.

#include <cstdio>
#include <cstdlib>

#include "cpu/target_headers.h"

#define D3PM_TARGET_FILE "tests/cpu/mathematics_target.h"
#include "cpu/for_each_target.h"

namespace d3pm {

Target asked;

Target best_target() { return asked; }

}  // namespace d3pm

int main(int, char** arguments) {
  d3pm::asked = static_cast<d3pm::Target>(std::atoi(arguments[1]));
  const auto calculate = [] { D3PM_CALL_BEST(sum_of_all); };
  std::printf("%u\n", calculate());
}
