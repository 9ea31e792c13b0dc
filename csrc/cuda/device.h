// What all device code shares: elements, vectors of 16 bytes, mathematics of one number, sums over
// the threads of a row. Compiled by nvcc, or as C++ for the CPU by the tests' simt.h.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define D3PM_LAUNCH(kernel, num_blocks, num_threads, shared_bytes, stream, ...) \
  kernel<<<num_blocks, num_threads, shared_bytes, stream>>>(__VA_ARGS__)
#define D3PM_DYNAMIC_SHARED(type, name)  \
  extern __shared__ uint4 d3pm_shared[]; \
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
constexpr float kLn2 = 0.693147181f, kLog2e = 1.44269502f;

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

// In memory it may be two numbers of 16 bits.
typedef uint32_t __attribute__((may_alias)) Word;

// Two numbers next to each other in memory; those of 16 bits are one word.
template <class Element>
struct Pair {
  static_assert(sizeof(Element) == 2);
  uint32_t bits;

  __device__ float widened(int i) const {
    return Memory<Element>::widen({static_cast<uint16_t>(bits >> 16 * i)});
  }
  static __device__ Pair narrow(float first, float second) {
#if defined(__CUDACC__)
    if constexpr (std::is_same_v<Element, BFloat16>)
      return {bit_cast<uint32_t>(__floats2bfloat162_rn(first, second))};
    else
      return {bit_cast<uint32_t>(__floats2half2_rn(first, second))};
#else
    return {Memory<Element>::narrow(first).bits |
            static_cast<uint32_t>(Memory<Element>::narrow(second).bits) << 16};
#endif
  }
};

template <>
struct alignas(8) Pair<float> {
  float values[2];

  __device__ float widened(int i) const { return values[i]; }
  static __device__ Pair narrow(float first, float second) { return {{first, second}}; }
};

// The larger ones of two pairs; of a number and NaN, the number.
template <class Element>
__device__ Pair<Element> max(Pair<Element> a, Pair<Element> b) {
#if defined(__CUDACC__)
  if constexpr (sizeof(Element) == 2) {
    using Two = std::conditional_t<std::is_same_v<Element, BFloat16>, __nv_bfloat162, __half2>;
    return {bit_cast<uint32_t>(__hmax2(bit_cast<Two>(a.bits), bit_cast<Two>(b.bits)))};
  }
#endif
  return Pair<Element>::narrow(fmaxf(a.widened(0), b.widened(0)),
                               fmaxf(a.widened(1), b.widened(1)));
}

template <class Element>
struct alignas(16) Pack {
  static constexpr int kSize = 16 / sizeof(Element);
  Element values[kSize];

  __device__ auto widened(int i) const { return Memory<Element>::widen(values[i]); }

  // The i-th and the next.
  __device__ Pair<Element> pair(int i) const {
    Pair<Element> pairs[kSize / 2];
    memcpy(pairs, values, sizeof(pairs));
    return pairs[i / 2];
  }
};

// Two at a time, of which one lies where the float has it.
template <>
__device__ inline auto Pack<BFloat16>::widened(int i) const {
  uint32_t words[4];
  memcpy(words, values, sizeof(words));
  return bit_cast<float>(i % 2 ? words[i / 2] & 0xffff0000u : words[i / 2] << 16);
}

// Copies 16 bytes from global to shared memory, or zeros where they are not to be read; this
// thread's are there after wait_for_copies().
#if defined(__CUDACC__)
__device__ inline void copy_async(void* to, const void* from, bool reads = true) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(
                   static_cast<uint32_t>(__cvta_generic_to_shared(to))),
               "l"(from), "r"(reads ? 16 : 0)
               : "memory");
}
// The same without a branch; nothing is written where nothing is to be copied.
__device__ inline void copy_async_if(bool copies, void* to, const void* from) {
  asm volatile(
      "{ .reg .pred copies; setp.ne.u32 copies, %2, 0;"
      " @copies cp.async.cg.shared.global [%0], [%1], 16; }" ::"r"(
          static_cast<uint32_t>(__cvta_generic_to_shared(to))),
      "l"(from), "r"(static_cast<uint32_t>(copies))
      : "memory");
}
__device__ inline void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }
#endif

// A cluster is some blocks in a row that run together, on sm_90 and later. cluster_sync() is
// __syncthreads() for all of them; put_in_block() writes a number where another block, the `rank`th
// of its cluster, has the address `to` in its shared memory.
#if defined(__CUDACC__)
__device__ inline void cluster_sync() {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;" ::: "memory");
#endif
}
__device__ inline void put_in_block(float* to, int rank, float value) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  asm volatile(
      "{ .reg .b32 there; mapa.shared::cluster.u32 there, %0, %1;"
      " st.shared::cluster.f32 [there], %2; }" ::"r"(
          static_cast<uint32_t>(__cvta_generic_to_shared(to))),
      "r"(rank), "f"(value)
      : "memory");
#endif
}

// Lets a kernel have more of a block's shared memory than the 48 KiB that need no asking: always
// all of it, for another thread may be about to start the kernel with more.
template <class Kernel>
void allow_shared(Kernel* kernel, size_t bytes) {
  int device = 0, most = 0;
  cudaFuncAttributes compiled;
  if (bytes <= 48 << 10 || cudaGetDevice(&device) || cudaFuncGetAttributes(&compiled, kernel) ||
      cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device))
    return;
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                       most - static_cast<int>(compiled.sharedSizeBytes));
}

// Starts a kernel in clusters; false where it was not compiled for them, or none has a place.
template <class... Arguments>
bool launch_clusters(void (*kernel)(Arguments...), int64_t num_clusters, int num_blocks,
                     int num_threads, size_t shared_bytes, cudaStream_t stream,
                     const Arguments&... arguments) {
  cudaFuncAttributes compiled;
  if (cudaFuncGetAttributes(&compiled, kernel) || compiled.ptxVersion < 90) return false;
  allow_shared(kernel, shared_bytes);
  cudaLaunchAttribute cluster = {};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = num_blocks;
  cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(num_clusters * num_blocks));
  config.blockDim = dim3(num_threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = 1;
  int places = 0;
  const auto error = cudaOccupancyMaxActiveClusters(&places, kernel, &config);
  if (error != cudaSuccess || places == 0) {
    cudaGetLastError();  // is answered
    return false;
  }
  cudaLaunchKernelEx(&config, kernel, arguments...);
  return true;
}
#endif

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

// The logarithm of a number that is far from 1, or whose error may be absolute.
__device__ inline float rough_log2(float x) { return hardware_log2(x); }
__device__ inline double rough_log2(double x) { return ::log2(x); }
__device__ inline float rough_log(float x) { return hardware_log2(x) * kLn2; }
__device__ inline double rough_log(double x) { return ::log(x); }

template <class Real>
struct Math;

template <>
struct Math<float> {
  using V = float;
  using Bits = bool;
  using Words = uint32_t;
  using Ints = int32_t;
  static constexpr double tiny = kTiny<float>;
  static constexpr double least = 0x1p-125;  // whose reciprocal is normal, too

  static __device__ V splat(double value) { return static_cast<float>(value); }
  static __device__ V select(bool mask, V yes, V no) { return mask ? yes : no; }
  template <class Yes, class No>
  static __device__ V where(bool mask, const Yes& yes, const No& no) {
    return mask ? yes() : no();
  }
  static __device__ V to_real(Ints n) { return static_cast<float>(n); }
  static __device__ V exp(V x) { return expf(x); }
  static __device__ V log(V x) { return logf(x); }
  static __device__ V rough_log(V x) { return device::rough_log(x); }
  static __device__ V log1p(V x) {
    const auto s = split_log<Math>(x, 1 + x);
    return (s.exponent * kLn2Low + (s.x - s.curve)) + s.exponent * kLn2High + 0 * x;  // keeps NaN
  }
  static __device__ V reciprocal(V x) { return hardware_reciprocal(x); }

  static __device__ V phi(V x, V y) { return phi_in_float<Math>(x, y); }
  static __device__ Powers<V> powers(V x) { return powers_in_float<Math>(x); }
};

template <>
struct Math<double> {
  using V = double;
  using Bits = bool;
  static constexpr double tiny = kTiny<double>;
  static constexpr double least = 0x1p-1021;

  static __device__ V splat(double value) { return value; }
  static __device__ V select(bool mask, V yes, V no) { return mask ? yes : no; }
  template <class Yes, class No>
  static __device__ V where(bool mask, const Yes& yes, const No& no) {
    return mask ? yes() : no();
  }
  static __device__ V exp(V x) { return ::exp(x); }
  static __device__ V log(V x) { return ::log(x); }
  static __device__ V rough_log(V x) { return ::log(x); }
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

// exp(x - top) of the numbers of a row, and its logarithm. In float it is the hardware's, of one
// rounded number, within 1e-7 (3 + |x - top|) of itself; all of a row share what that of the top
// adds. Floats above 2^30 are 128 apart, so that nothing is left of a smaller one whatever the base
// of the power: there it is 2, for which that of the top adds nothing.
template <class Real>
struct Exponential;

template <>
struct Exponential<float> {
  float scale, shift;

  explicit __device__ Exponential(float top)
      : scale(fabsf(top) < 0x1.6p30f ? kLog2e : 1.0f), shift(top * scale) {}
  __device__ float operator()(float x) const { return hardware_exp2(fmaf(x, scale, -shift)); }
  __device__ float log(float x) const {
    return (scale == 1 ? 1.0f : kLn2) * fmaf(x, scale, -shift);
  }
};

template <>
struct Exponential<double> {
  double top;

  explicit __device__ Exponential(double top) : top(top) {}
  __device__ double operator()(double x) const { return ::exp(x - top); }
  __device__ double log(double x) const { return x - top; }
};

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
  __device__ int operator()(int a, int b) const { return a > b ? a : b; }
  __device__ int64_t operator()(int64_t a, int64_t b) const { return a > b ? a : b; }
};

// What `fold` makes of each of some numbers of each of the `threads` that share a row, all of a
// block where they are more than a warp. Every thread of the block calls it.
template <class Real, int kCount, class Fold>
__device__ void reduce(int threads, Real (&values)[kCount], Fold fold) {
  for (int other = (threads < kWarp ? threads : kWarp) / 2; other > 0; other /= 2)
    for (Real& value : values) value = fold(value, __shfl_xor_sync(0xffffffff, value, other));
  if (threads > kWarp) {
    __shared__ Real of_warp[kMostThreads / kWarp][kCount];
    if (threadIdx.x % kWarp == 0)
      for (int i = 0; i < kCount; ++i) of_warp[threadIdx.x / kWarp][i] = values[i];
    __syncthreads();
    for (int i = 0; i < kCount; ++i) values[i] = of_warp[0][i];
#pragma unroll 1
    for (int warp = 1; warp < threads / kWarp; ++warp)
      for (int i = 0; i < kCount; ++i) values[i] = fold(values[i], of_warp[warp][i]);
    __syncthreads();
  }
}

template <class Real, class Fold>
__device__ Real reduce(int threads, Real value, Fold fold) {
  Real values[] = {value};
  reduce(threads, values, fold);
  return values[0];
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
#pragma unroll 1
    for (int warp = 0; warp < threads / kWarp; ++warp) {
      if (warp == static_cast<int>(threadIdx.x / kWarp)) before += total;
      total += of_warp[warp];
    }
    __syncthreads();
  }
  return before;
}

// Finds the run of a token, where all are of one length, without a division.
struct Runs {
  int64_t length;
  double per_token;

  explicit Runs(int64_t length) : length(length), per_token(1 / static_cast<double>(length)) {}

  // Right for any token below 2^51.
  __device__ int64_t of(int64_t token) const {
    return static_cast<int64_t>((static_cast<double>(token) + 0.5) * per_token);
  }
};

// What went wrong with the last launch; null for nothing.
inline const char* last_error() {
  const auto error = cudaGetLastError();
  return error ? cudaGetErrorString(error) : nullptr;
}

}  // namespace d3pm::device
