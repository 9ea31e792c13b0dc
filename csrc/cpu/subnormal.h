// Subnormal numbers count as zero while one of these lives, in its thread; elsewhere than on
// x86-64 they are only slow.
#pragma once

#ifdef __x86_64__
#include <xmmintrin.h>
#endif

namespace d3pm {

class FlushSubnormals {
#ifdef __x86_64__
 public:
  FlushSubnormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | kFlush); }
  ~FlushSubnormals() { _mm_setcsr(before_); }
  FlushSubnormals(const FlushSubnormals&) = delete;
  FlushSubnormals& operator=(const FlushSubnormals&) = delete;

 private:
  static constexpr unsigned kFlush = 0x8040;  // of results and of operands
  const unsigned before_;
#endif
};

}  // namespace d3pm
