// Faults that simt.h is to show, each in a kernel of one block.

#include <exception>

#include "simt.h"

namespace {

constexpr int kThreads = 64;

// Every thread reads what another one has written; the barrier between is missing or not.
void reverse(const float* x, float* out, bool with_barrier) {
  __shared__ float shared[kThreads];
  shared[threadIdx.x] = x[threadIdx.x];
  if (with_barrier) __syncthreads();
  out[threadIdx.x] = shared[kThreads - 1 - threadIdx.x];
}

void barrier_of_some() {
  if (threadIdx.x < 16) __syncthreads();
  __syncwarp();
}

void barriers_apart() {
  if (threadIdx.x < 32)
    __syncthreads();
  else
    __syncthreads();
}

void shuffle_outside_of_mask() { __shfl_xor_sync(0x0000ffff, 1.0f, 1); }

std::string message;

template <class Kernel>
const char* error_of(const Kernel& kernel, unsigned blocks_of_cluster = 1) {
  try {
    simt::launch(1, kThreads, 0, kernel, blocks_of_cluster);
    return nullptr;
  } catch (const std::exception& error) {
    message = error.what();
    return message.c_str();
  }
}

}  // namespace

#define EXPORTED extern "C" __attribute__((visibility("default")))

EXPORTED const char* planted_reverse(const float* x, float* out, bool with_barrier) {
  return error_of([=] { reverse(x, out, with_barrier); });
}

EXPORTED const char* planted_barrier_of_some() { return error_of(barrier_of_some); }

EXPORTED const char* planted_barriers_apart() { return error_of(barriers_apart); }

EXPORTED const char* planted_shuffle_outside_of_mask() { return error_of(shuffle_outside_of_mask); }

EXPORTED const char* planted_barrier_of_a_block_of_a_cluster() {
  return error_of([] { __syncthreads(); }, 2);
}
