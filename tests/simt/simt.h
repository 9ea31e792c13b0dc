// For tests only: runs CUDA device code as C++, a fiber for every thread, one block after another,
// or one cluster of blocks. Those of a cluster meet at its barriers alone, and share what is
// declared __shared__, so they have dynamic shared memory only.
//
// The order of the fibers is shuffled by a seed, anew between any two meetings, and between any two
// barriers of the block one warp or none is held back until no other can go on. So a result that
// needs a barrier which is not there comes out differently for some seed; a barrier that is there
// can be left out to see it. Threads that wait for others that never come, or meet at different
// places, are an error.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <mutex>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static

namespace simt {

struct Index {
  unsigned x;
};

constexpr unsigned kWarp = 32;
constexpr size_t kStack = 64 << 10;

// Which order threads run in, 0 for their own, which barrier of the block is left out, whether the
// hardware's functions err as much as they may, and whether there are clusters.
struct Schedule {
  uint64_t seed = 0;
  std::string file;
  int line = 0;
  bool errs = false, has_clusters = true;
};

inline Schedule& schedule() {
  static Schedule value;
  return value;
}

// What a fiber waits at, and with which others.
struct Meeting {
  const char* place = nullptr;
  int line = 0;        // of the place, where it is a file
  uint32_t lanes = 0;  // of its warp; unused where the whole block meets
};

// 16 bytes on their way into shared memory; zeros where they are not read.
struct Copy {
  void* to;
  const void* from;
  bool reads;
};

struct Fiber {
  ucontext_t context;  // to begin with
  jmp_buf place;       // to go on: ucontext alone would ask the system at every switch
  bool begun;
  enum { ready, at_block, at_warp, done } state;
  Meeting meeting;
  uint64_t given;  // to the other lanes
  std::vector<Copy> copies;
};

class Block {
 public:
  static Block& current() {
    static Block block;
    return block;
  }

  // Of all blocks of a cluster the threads are counted on.
  unsigned thread = 0, block_index = 0, num_threads = 0, num_blocks = 0, blocks_of_cluster = 1;

  unsigned block_size() const { return num_threads / blocks_of_cluster; }
  unsigned rank() const { return thread / block_size(); }

  void allot(size_t shared_bytes) {
    stride_ = (shared_bytes + 15) / 16 * 2;
    dynamic_shared_.assign(stride_ * blocks_of_cluster, 0xA5A5A5A5A5A5A5A5);
  }
  uint64_t* dynamic_shared() { return dynamic_shared_.data() + rank() * stride_; }

  // Where the address of one's own shared memory is in that of another block of the cluster.
  char* in_block(void* own, unsigned other) {
    return static_cast<char*>(own) +
           (static_cast<ptrdiff_t>(other) - static_cast<ptrdiff_t>(rank())) *
               static_cast<ptrdiff_t>(stride_ * sizeof(uint64_t));
  }

  void run(const std::function<void()>& body) {
    body_ = &body;
    error_.clear();
    fibers_.assign(num_threads, {});
    stacks_.resize(num_threads * kStack);
    order_.resize(num_threads);
    for (unsigned i = 0; i < num_threads; ++i) {
      order_[i] = i;
      Fiber& fiber = fibers_[i];
      getcontext(&fiber.context);
      fiber.context.uc_stack = {stacks_.data() + i * kStack, 0, kStack};
      fiber.context.uc_link = nullptr;
      makecontext(&fiber.context, &Block::enter, 0);
    }
    random_.seed(schedule().seed + block_index);
    hold_a_warp();
    while (count(Fiber::done) < num_threads) {
      if (schedule().seed) std::shuffle(order_.begin(), order_.end(), random_);
      const bool any = resume_all([this](unsigned i) { return i / kWarp != held_; }) ||
                       resume_all([](unsigned) { return true; });
      if (!release() && !any) fail("threads wait for each other at " + waiting());
    }
  }

  void wait(decltype(Fiber::state) state, const Meeting& meeting) {
    Fiber& fiber = fibers_[thread];
    fiber.state = state;
    fiber.meeting = meeting;
    if (!_setjmp(fiber.place)) _longjmp(scheduler_, 1);
  }

  void barrier(const char* path, int line) {
    if (blocks_of_cluster > 1) fail("blocks of a cluster meet at its barriers");
    meet(path, line);
  }

  void meet(const char* path, int line) {
    const char* const slash = std::strrchr(path, '/');
    const char* const file = slash ? slash + 1 : path;
    if (line == schedule().line && file == schedule().file) return;
    wait(Fiber::at_block, {file, line});
  }

  // What every lane of the warp has given, once all of `lanes` have met.
  template <class T>
  T exchange(uint32_t lanes, T value, unsigned from, const char* place) {
    static_assert(sizeof(T) <= sizeof(uint64_t), "a lane gives at most 8 bytes");
    const unsigned first = thread / kWarp * kWarp;
    if (!(lanes >> (thread - first) & 1))
      fail(std::string("a lane is not in its mask at ") + place);
    std::memcpy(&fibers_[thread].given, &value, sizeof(T));
    wait(Fiber::at_warp, {place, 0, lanes});
    T result = value;
    if (first + from < num_threads) std::memcpy(&result, &fibers_[first + from].given, sizeof(T));
    wait(Fiber::at_warp, {place, 0, lanes});  // nobody gives anew before all have taken
    return result;
  }

  // Of the copies of this thread.
  void later(void* to, const void* from, bool reads) {
    if ((reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from)) % 16)
      fail("a copy of 16 bytes is not aligned");
    fibers_[thread].copies.push_back({to, from, reads});
  }

  void copy() {
    for (const Copy& each : fibers_[thread].copies)
      each.reads ? std::memcpy(each.to, each.from, 16) : std::memset(each.to, 0, 16);
    fibers_[thread].copies.clear();
  }

  void fail(const std::string& message) {
    error_ = message;
    if (inside_) _longjmp(scheduler_, 1);
    throw std::runtime_error(error_);
  }

 private:
  static void enter() {
    Block& block = current();
    (*block.body_)();
    block.wait(Fiber::done, {"its end"});
  }

  void hold_a_warp() {
    const unsigned warps = (num_threads + kWarp - 1) / kWarp;
    held_ = schedule().seed ? random_() % (warps + 1) : warps;  // warps: none
  }

  // Whether any of them could go on.
  template <class Which>
  bool resume_all(const Which& which) {
    bool any = false;
    for (unsigned i : order_)
      if (which(i) && fibers_[i].state == Fiber::ready) resume(i), any = true;
    return any;
  }

  void resume(unsigned i) {
    thread = i;
    inside_ = true;
    if (!_setjmp(scheduler_)) {
      Fiber& fiber = fibers_[i];
      if (fiber.begun) _longjmp(fiber.place, 1);
      fiber.begun = true;
      setcontext(&fiber.context);
    }
    inside_ = false;
    if (!error_.empty()) throw std::runtime_error(error_);
  }

  unsigned count(decltype(Fiber::state) state) const {
    return std::count_if(fibers_.begin(), fibers_.end(),
                         [=](const Fiber& fiber) { return fiber.state == state; });
  }

  // Lets go on who has met; false where nobody has and somebody waits.
  bool release() {
    bool any = count(Fiber::done) == num_threads;
    if (const unsigned met = count(Fiber::at_block); met && met + count(Fiber::done) == num_threads)
      any = release_block();
    for (unsigned first = 0; first < num_threads; first += kWarp) {
      const unsigned last = std::min(first + kWarp, num_threads);
      for (unsigned i = first; i < last; ++i)
        if (fibers_[i].state == Fiber::at_warp)
          any |= release_warp(first, last, fibers_[i].meeting);
    }
    return any;
  }

  bool release_warp(unsigned first, unsigned last, const Meeting meeting) {
    for (unsigned i = first; i < last; ++i) {
      const Fiber& fiber = fibers_[i];
      if (!(meeting.lanes >> (i - first) & 1)) continue;
      if (fiber.state != Fiber::at_warp || fiber.meeting.lanes != meeting.lanes) return false;
      if (std::strcmp(fiber.meeting.place, meeting.place)) return false;
    }
    for (unsigned i = first; i < last; ++i)
      if (meeting.lanes >> (i - first) & 1) fibers_[i].state = Fiber::ready;
    return true;
  }

  bool release_block() {
    const Meeting* first = nullptr;
    for (Fiber& fiber : fibers_) {
      if (fiber.state != Fiber::at_block) continue;
      if (!first) first = &fiber.meeting;
      if (fiber.meeting.line != first->line || std::strcmp(fiber.meeting.place, first->place))
        fail("threads meet at different places: " + name(*first) + " and " + name(fiber.meeting));
      fiber.state = Fiber::ready;
    }
    hold_a_warp();
    return true;
  }

  static std::string name(const Meeting& meeting) {
    return meeting.place + (meeting.line ? ":" + std::to_string(meeting.line) : "");
  }

  std::string waiting() const {
    for (const Fiber& fiber : fibers_)
      if (fiber.state != Fiber::done) return name(fiber.meeting);
    return "their end";
  }

  const std::function<void()>* body_ = nullptr;
  std::vector<uint64_t> dynamic_shared_;
  size_t stride_ = 0;
  std::vector<Fiber> fibers_;
  std::vector<char> stacks_;
  std::vector<unsigned> order_;
  std::mt19937_64 random_;
  unsigned held_ = 0;  // the warp that is held back
  jmp_buf scheduler_;
  std::string error_;
  bool inside_ = false;
};

// The dimensions and indices of CUDA, of which the kernels use x.
struct ThreadIndex {
  struct {
    operator unsigned() const { return Block::current().thread % Block::current().block_size(); }
  } x;
};
struct BlockIndex {
  struct {
    operator unsigned() const {
      const Block& block = Block::current();
      return block.block_index * block.blocks_of_cluster + block.rank();
    }
  } x;
};
struct BlockSize {
  struct {
    operator unsigned() const { return Block::current().block_size(); }
  } x;
};

// Bytes of a block's shared memory that this thread's next kernel may have.
inline size_t& most_shared() {
  static thread_local size_t bytes = 48 << 10;
  return bytes;
}

// Runs all blocks of a grid, or all clusters, one grid at a time whoever calls.
inline void launch(uint64_t num_blocks, unsigned num_threads, size_t shared_bytes,
                   const std::function<void()>& body, unsigned blocks_of_cluster = 1) {
  static std::mutex one_at_a_time;
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  if (shared_bytes > most_shared()) throw std::runtime_error("more shared memory than was allowed");
  most_shared() = 48 << 10;
  Block& block = Block::current();
  block.num_blocks = num_blocks;
  block.num_threads = num_threads * blocks_of_cluster;
  block.blocks_of_cluster = blocks_of_cluster;
  for (block.block_index = 0; block.block_index < num_blocks; ++block.block_index) {
    block.allot(shared_bytes);
    block.run(body);
  }
}

}  // namespace simt

static const simt::ThreadIndex threadIdx;
static const simt::BlockIndex blockIdx;
static const simt::BlockSize blockDim;

inline void __syncthreads(const char* path = __builtin_FILE(), int line = __builtin_LINE()) {
  simt::Block::current().barrier(path, line);
}

inline void __syncwarp(uint32_t lanes = 0xffffffff) {
  simt::Block::current().wait(simt::Fiber::at_warp, {"__syncwarp", 0, lanes});
}

template <class T>
T __shfl_xor_sync(uint32_t lanes, T value, unsigned mask) {
  simt::Block& block = simt::Block::current();
  return block.exchange(lanes, value, block.thread % simt::kWarp ^ mask, "__shfl_xor_sync");
}

inline bool __all_sync(uint32_t lanes, bool value) {
  for (unsigned other = simt::kWarp / 2; other > 0; other /= 2)
    value &= __shfl_xor_sync(lanes, value, other);
  return value;
}

template <class T>
T __shfl_up_sync(uint32_t lanes, T value, unsigned delta, unsigned width) {
  simt::Block& block = simt::Block::current();
  const unsigned lane = block.thread % simt::kWarp,
                 from = lane % width < delta ? lane : lane - delta;
  return block.exchange(lanes, value, from, "__shfl_up_sync");
}

template <class T>
T __shfl_sync(uint32_t lanes, T value, unsigned from, unsigned width) {
  simt::Block& block = simt::Block::current();
  return block.exchange(lanes, value, block.thread % simt::kWarp / width * width + from,
                        "__shfl_sync");
}

inline int __clz(int bits) { return bits ? __builtin_clz(bits) : 32; }
inline int __ffs(int bits) { return __builtin_ffs(bits); }

// Copies wait, as those of the hardware may, until they are waited for.
inline void copy_async(void* to, const void* from, bool reads = true) {
  simt::Block::current().later(to, from, reads);
}

inline void copy_async_if(bool copies, void* to, const void* from) {
  if (copies) copy_async(to, from);
}

inline void wait_for_copies() { simt::Block::current().copy(); }

inline void cluster_sync(const char* path = __builtin_FILE(), int line = __builtin_LINE()) {
  simt::Block::current().meet(path, line);
}

inline void put_in_block(float* to, int rank, float value) {
  std::memcpy(simt::Block::current().in_block(to, rank), &value, sizeof(value));
}

template <class Kernel>
void allow_shared(Kernel*, size_t bytes) {
  if (bytes > 48 << 10) simt::most_shared() = bytes;
}

template <class... Arguments>
bool launch_clusters(void (*kernel)(Arguments...), int64_t num_clusters, int num_blocks,
                     int num_threads, size_t shared_bytes, void*, const Arguments&... arguments) {
  if (!simt::schedule().has_clusters || shared_bytes > 227 << 10) return false;
  allow_shared(kernel, shared_bytes);
  simt::launch(num_clusters, num_threads, shared_bytes, [&] { kernel(arguments...); }, num_blocks);
  return true;
}

// Between -1 and 1, the same for the same number; 0 where the hardware is to err like C++.
inline float noise(float x) {
  if (!simt::schedule().errs) return 0;
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return static_cast<int32_t>(bits * 2654435761u) * 0x1p-31f;
}

// Numbers that are not normal are 0.
inline float flushed(float x) { return std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x; }

// As far off as the hardware may be at most, by the manual of PTX.
inline float hardware_reciprocal(float x) {
  return flushed(1 / flushed(x) * (1 + 0x1p-23f * noise(x)));
}

inline float hardware_exp2(float x) {
  return flushed(exp2f(flushed(x)) * (1 + 0x1p-22f * noise(x)));
}

inline float hardware_log2(float x) {
  const float y = log2f(flushed(x)), error = 0x1p-22f * noise(x);
  return x > 0.5f && x < 2 ? y + error : y * (1 + error);
}

#define D3PM_LAUNCH(kernel, num_blocks, num_threads, shared_bytes, stream, ...) \
  (void)(stream), simt::launch(num_blocks, num_threads, shared_bytes, [&] { kernel(__VA_ARGS__); })
#define D3PM_DYNAMIC_SHARED(type, name) \
  type* const name = reinterpret_cast<type*>(simt::Block::current().dynamic_shared())
