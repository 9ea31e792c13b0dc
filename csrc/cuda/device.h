// What all device code shares: elements, vectors of 16 bytes, mathematics of one number, sums over
// the threads of a row. Compiled by nvcc, or as C++ for the CPU by the tests' simt.h.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
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

template <class To, class From>
__device__ To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast keeps the size");
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

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
    const uint32_t bits = bit_cast<uint32_t>(value);
    const uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
    return {static_cast<uint16_t>(value == value ? rounded : 0x7fc0u)};
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

template <class Real>
struct Math;

template <>
struct Math<float> {
  using V = float;
  using Bits = bool;
  static constexpr double tiny = 1e-30;  // below it a probability counts as zero

  static __device__ V splat(double value) { return static_cast<float>(value); }
  static __device__ V select(bool mask, V yes, V no) { return mask ? yes : no; }
  static __device__ V exp(V x) { return expf(x); }
  static __device__ V log(V x) { return logf(x); }
  static __device__ V log1p(V x) { return log1pf(x); }

  // x - log(1 + x), given y = 1 + x to its own last digit, positive and normal.
  static __device__ V phi(V x, V y) {
    const uint32_t bits = bit_cast<uint32_t>(y);
    const int32_t power = static_cast<int32_t>(bits - 0x3f3504f3u) >> 23;
    const float mantissa = bit_cast<float>(bits - (static_cast<uint32_t>(power) << 23));
    const float r = power == 0 ? x : mantissa - 1.0f, n = static_cast<float>(power);
    float p = r * 7.0376836292e-2f - 1.1514610310e-1f;
    p = p * r + 1.1676998740e-1f;
    p = p * r - 1.2420140846e-1f;
    p = p * r + 1.4249322787e-1f;
    p = p * r - 1.6668057665e-1f;
    p = p * r + 2.0000714765e-1f;
    p = p * r - 2.4999993993e-1f;
    p = p * r + 3.3333331174e-1f;
    const float curve = r * r * (0.5f - r * p);
    return ((x - r) - n * -2.12194440e-4f) - n * 0.693359375f + curve;
  }
};

template <>
struct Math<double> {
  using V = double;
  using Bits = bool;
  static constexpr double tiny = 1e-290;

  static __device__ V splat(double value) { return value; }
  static __device__ V select(bool mask, V yes, V no) { return mask ? yes : no; }
  static __device__ V exp(V x) { return ::exp(x); }
  static __device__ V log(V x) { return ::log(x); }
  static __device__ V log1p(V x) { return ::log1p(x); }

  static __device__ V phi(V x, V y) {
    if (x <= -0.1 || x >= 0.1) return x - ::log(y);
    const V z = x / (2.0 + x), z2 = z * z;  // log(1 + x) = 2 atanh(z)
    V p = z2 / 15.0 + 1.0 / 13.0;
    p = p * z2 + 1.0 / 11.0;
    p = p * z2 + 1.0 / 9.0;
    p = p * z2 + 1.0 / 7.0;
    p = p * z2 + 1.0 / 5.0;
    p = p * z2 + 1.0 / 3.0;
    return z * (x - 2.0 * z2 * p);
  }
};

struct Sum {
  template <class Real>
  __device__ Real operator()(Real a, Real b) const {
    return a + b;
  }
};

struct Max {
  template <class Real>
  __device__ Real operator()(Real a, Real b) const {
    return a > b || a != a ? a : b;  // NaN stays
  }
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
