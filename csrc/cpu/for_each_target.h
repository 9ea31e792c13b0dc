// Compiles the file D3PM_TARGET_FILE once for each set of vector instructions, each time in a
// namespace of its own; `call_best` picks one at run time. No global flag asks for more than
// the platform's baseline, so no code outside these namespaces can hold an illegal instruction.

#include "instruction_sets.h"

#if defined(__x86_64__)
#include <immintrin.h>
#define D3PM_HAS_X86_TARGETS 1
#endif

#define D3PM_VECTOR_BYTES 16
namespace d3pm::baseline {
#include D3PM_TARGET_FILE
}
#undef D3PM_VECTOR_BYTES

#ifdef D3PM_HAS_X86_TARGETS

#define D3PM_PRAGMA(text) _Pragma(#text)
#ifdef __clang__
#define D3PM_BEGIN_TARGET(list) \
  D3PM_PRAGMA(clang attribute push(__attribute__((target(list))), apply_to = function))
#define D3PM_END_TARGET D3PM_PRAGMA(clang attribute pop)
#else
#define D3PM_BEGIN_TARGET(list) D3PM_PRAGMA(GCC push_options) D3PM_PRAGMA(GCC target(list))
#define D3PM_END_TARGET D3PM_PRAGMA(GCC pop_options)
#endif

#define D3PM_VECTOR_BYTES 32
D3PM_BEGIN_TARGET("avx2,fma")
namespace d3pm::avx2 {
#include D3PM_TARGET_FILE
}
D3PM_END_TARGET
#undef D3PM_VECTOR_BYTES

#define D3PM_VECTOR_BYTES 64
D3PM_BEGIN_TARGET("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")
namespace d3pm::avx512 {
#include D3PM_TARGET_FILE
}
D3PM_END_TARGET
#undef D3PM_VECTOR_BYTES

#define D3PM_CALL_BEST(function, ...)                                          \
  switch (::d3pm::best_target()) {                                             \
    case ::d3pm::Target::avx512: return ::d3pm::avx512::function(__VA_ARGS__); \
    case ::d3pm::Target::avx2: return ::d3pm::avx2::function(__VA_ARGS__);     \
    default: return ::d3pm::baseline::function(__VA_ARGS__);                   \
  }
#else
#define D3PM_CALL_BEST(function, ...) return ::d3pm::baseline::function(__VA_ARGS__)
#endif
