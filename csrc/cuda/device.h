// What all device code shares: elements, vectors of 16 bytes, mathematics of one number, sums over
// the threads of a row. Compiled by nvcc, or as C++ for the CPU by the tests' simt.h.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define D3PM_LAUNCH(kernel, num_blocks, num_threads, shared_bytes, stream, ...) \
  kernel<<<num_blocks, num_threads, shared_bytes, stream>>>(__VA_ARGS__)
#define D3PM_DYNAMIC_SHARED(type, name)     \
  extern __shared__ uint64_t d3pm_shared[]; \
  type* const name = reinterpret_cast<type*>(d3pm_shared)
#else
#include "simt.h"
using cudaStream_t = void*;
inline int cudaGetLastError() { return 0; }
inline const char* cudaGetErrorString(int) { return nullptr; }
#endif

#include "../rank_one.h"
#include "kernels.h"

namespace d3pm::device {

constexpr int kWarp = 32;
constexpr int kMostThreads = 256;  // that share a row
constexpr float kLn2 = 0.693147181f, kLog2e = 1.44269502f, kLog2eRest = 1.92596299e-8f;

#include "../bits.h"
#include "../phi.h"
#include "../powers.h"

template <class Element>
struct Memory {
  using Real = Element;
  static __device__ Real widen(Element value) { return value; }
  static __device__ Element narrow(Real value) { return value; }
};

template <>
struct Memory<BFloat16> {
  using Real = float;
  static __device__ float widen(BFloat16 value) {
    return bit_cast<float>(static_cast<uint32_t>(value.bits) << 16);
  }
  static __device__ BFloat16 narrow(float value) {
#if defined(__CUDACC__)
    return bit_cast<BFloat16>(__float2bfloat16_rn(value));
#else
    return {static_cast<uint16_t>(bfloat16_bits<uint32_t>(value))};
#endif
  }
};

template <>
struct Memory<Float16> {
  using Real = float;
#if defined(__CUDACC__)
  using Half = __half;
#else
  using Half = _Float16;
#endif
  static __device__ float widen(Float16 value) {
    return static_cast<float>(bit_cast<Half>(value.bits));
  }
  static __device__ Float16 narrow(float value) {
    return {bit_cast<uint16_t>(static_cast<Half>(value))};
  }
};

template <class Element>
struct alignas(16) Pack {
  static constexpr int kSize = 16 / sizeof(Element);
  Element values[kSize];
};

// One instruction each: 1 / x, 2^x and log2(x) to 1 to 2 units in the last place, the logarithm
// near 1 to 2^-22. Numbers that are not normal count as 0.
#if defined(__CUDACC__)
__device__ inline float hardware_reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ inline float hardware_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ inline float hardware_log2(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
#endif

template <class Real>
struct Math;

template <>
struct Math<float> {
  using V = float;
  using Bits = bool;
  using Words = uint32_t;
  using Ints = int32_t;
  static constexpr double tiny = kTiny<float>;

  static __device__ V splat(double value) { return static_cast<float>(value); }
  static __device__ V select(bool mask, V yes, V no) { return mask ? yes : no; }
  static __device__ V to_real(Ints n) { return static_cast<float>(n); }
  static __device__ V exp(V x) { return expf(x); }
  static __device__ V log(V x) { return logf(x); }
  static __device__ V log1p(V x) { return log1pf(x); }
  static __device__ V reciprocal(V x) { return hardware_reciprocal(x); }

  static __device__ V phi(V x, V y) { return phi_in_float<Math>(x, y); }
  static __device__ Powers<V> powers(V x) { return powers_in_float<Math>(x); }
};

template <>
struct Math<double> {
  using V = double;
  using Bits = bool;
  static constexpr double tiny = kTiny<double>;

  static __device__ V splat(double value) { return value; }
  static __device__ V select(bool mask, V yes, V no) { return mask ? yes : no; }
  static __device__ V exp(V x) { return ::exp(x); }
  static __device__ V log(V x) { return ::log(x); }
  static __device__ V log1p(V x) { return ::log1p(x); }
  static __device__ V reciprocal(V x) { return 1 / x; }

  static __device__ V phi(V x, V y) {
    if (x <= -0.1 || x >= 0.1) return x - ::log(y);
    return phi_near_zero(x);
  }
  static __device__ Powers<V> powers(V x) {
    return powers_in_double<Math>(x, x < -1 ? ::exp(x) : ::expm1(x));
  }
};

// The exponential and the logarithm of numbers of a row, as exact as the logits' type asks for.
template <class Element>
struct RowMath : Math<Element> {};

template <>
struct RowMath<float> : Math<float> {
  static __device__ float exp(float x) {
    const float high = x * kLog2e, low = fmaf(x, kLog2eRest, fmaf(x, kLog2e, -high));
    const float power = hardware_exp2(high);
    return fmaf(power, fmaxf(low * kLn2, -1), power);  // low is NaN where x is -inf
  }
};

struct RoughMath : Math<float> {
  static __device__ float exp(float x) { return hardware_exp2(x * kLog2e); }
  static __device__ float log(float x) { return hardware_log2(x) * kLn2; }
};

template <>
struct RowMath<BFloat16> : RoughMath {};
template <>
struct RowMath<Float16> : RoughMath {};

struct Sum {
  template <class Real>
  __device__ Real operator()(Real a, Real b) const {
    return a + b;
  }
};

// Of a number and NaN, the number.
struct Max {
  __device__ float operator()(float a, float b) const { return fmaxf(a, b); }
  __device__ double operator()(double a, double b) const { return fmax(a, b); }
  __device__ int64_t operator()(int64_t a, int64_t b) const { return a > b ? a : b; }
};

// What `fold` makes of a number of each of the `threads` that share a row, all of a block where
// they are more than a warp. Every thread of the block calls it.
template <class Real, class Fold>
__device__ Real reduce(int threads, Real value, Fold fold) {
  for (int other = (threads < kWarp ? threads : kWarp) / 2; other > 0; other /= 2)
    value = fold(value, __shfl_xor_sync(0xffffffff, value, other));
  if (threads > kWarp) {
    __shared__ Real of_warp[kMostThreads / kWarp];
    if (threadIdx.x % kWarp == 0) of_warp[threadIdx.x / kWarp] = value;
    __syncthreads();
    value = of_warp[0];
    for (int warp = 1; warp < threads / kWarp; ++warp) value = fold(value, of_warp[warp]);
    __syncthreads();
  }
  return value;
}

// The sum of `value` over the threads that share a row and come before this one, and over all.
__device__ inline double sum_before(int threads, double value, double& total) {
  const int lanes = threads < kWarp ? threads : kWarp;
  double running = value;
  for (int step = 1; step < lanes; step *= 2) {
    const double other = __shfl_up_sync(0xffffffff, running, step, lanes);
    if (static_cast<int>(threadIdx.x % lanes) >= step) running += other;
  }
  total = __shfl_sync(0xffffffff, running, lanes - 1, lanes);
  double before = running - value;
  if (threads > kWarp) {
    __shared__ double of_warp[kMostThreads / kWarp];
    if (threadIdx.x % kWarp == 0) of_warp[threadIdx.x / kWarp] = total;
    __syncthreads();
    total = 0;
    for (int warp = 0; warp < threads / kWarp; ++warp) {
      if (warp == static_cast<int>(threadIdx.x / kWarp)) before += total;
      total += of_warp[warp];
    }
    __syncthreads();
  }
  return before;
}

// What went wrong with the last launch; null for nothing.
inline const char* last_error() {
  const auto error = cudaGetLastError();
  return error ? cudaGetErrorString(error) : nullptr;
}

}  // namespace d3pm::device
