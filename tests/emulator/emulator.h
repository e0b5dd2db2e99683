// CUDA's execution model on the processor, as much of it as the kernels use, for tests without a
// GPU. Blocks run one after the other. Shared memory is exactly as large as asked for and poisoned
// with NaN, so that a sanitizer sees what leaves it.
//
// A block's threads take turns: each runs to the next barrier, on a stack of its own. Under
// ThreadSanitizer they are threads of the operating system, so that a missing barrier is a data
// race; that takes a hundred times longer.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#include "../../csrc/cuda/plan.h"

#if defined(__SANITIZE_THREAD__)
#include <pthread.h>

#include <thread>
#else
#include <ucontext.h>
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif
#endif

#define CRAD_KERNEL(blocks) void
#define CRAD_DEVICE inline
#define CRAD_UNROLL
#define CRAD_SHARED_MEMORY(name) char* const name = crad::emulator::block->shared.get()
#define CRAD_DISPATCH_KEY CPU

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};
inline thread_local dim3 threadIdx, blockIdx, blockDim;

namespace crad {

constexpr int kThreads = 64;  // two warps, which is all that a race needs

using Stream = void*;

constexpr torch::headeronly::DeviceType kDevice = torch::headeronly::DeviceType::CPU;

struct Current {
  explicit Current(const torch::stable::Tensor&) {}
  Stream stream = nullptr;
};

// Small, so that small cases take every way; a block may ask for more than that, for many axes.
inline Device current_device() { return {4, 24 * 1024, 1024, 32 * 1024, kThreads}; }

inline void clear(void* memory, int64_t bytes, Stream) { std::memset(memory, 0, bytes); }

namespace emulator {

// A barrier for threads that take turns.
struct Meeting {
  int arrived = 0;
  int64_t times = 0;
};

// What the threads of a block share.
struct Block {
  Block(int threads, int64_t bytes)
      : threads(threads),
        shared(new char[bytes]),
        bytes(bytes),
        slot(2 * threads),
        warp_meeting(threads / kWarp) {}
  int threads;
  std::unique_ptr<char[]> shared;
  int64_t bytes;
  std::vector<double> slot;  // what each gives to the others of its warp, and gave before
  Meeting meeting;
  std::vector<Meeting> warp_meeting;
};
inline thread_local Block* block = nullptr;

#if defined(__SANITIZE_THREAD__)

struct Barrier {
  explicit Barrier(unsigned threads) { pthread_barrier_init(&barrier, nullptr, threads); }
  ~Barrier() { pthread_barrier_destroy(&barrier); }
  pthread_barrier_t barrier;
};
inline thread_local Barrier* of_block = nullptr;
inline thread_local Barrier* of_warp = nullptr;
inline void wait_for_block() { pthread_barrier_wait(&of_block->barrier); }
inline void wait_for_warp() { pthread_barrier_wait(&of_warp->barrier); }

// Runs body(b) for the blocks on all threads.
inline void run(Block& shared, int64_t blocks, const std::function<void()>& body) {
  Barrier whole(shared.threads);
  std::vector<std::unique_ptr<Barrier>> warps;
  for (int warp = 0; warp < shared.threads / kWarp; ++warp)
    warps.push_back(std::make_unique<Barrier>(kWarp));
  std::vector<std::thread> threads;
  for (int index = 0; index < shared.threads; ++index)
    threads.emplace_back([&, index] {
      block = &shared;
      of_block = &whole;
      of_warp = warps[index / kWarp].get();
      threadIdx.x = index;
      blockDim.x = shared.threads;
      for (int64_t b = 0; b < blocks; ++b) {
        blockIdx.x = static_cast<unsigned>(b);
        if (index == 0) std::memset(shared.shared.get(), 0xFF, shared.bytes);
        wait_for_block();
        body();
        wait_for_block();
      }
    });
  for (std::thread& thread : threads) thread.join();
}

#else

// A thread of a block, with a stack of its own, which gives way at barriers.
struct Turn {
  static constexpr size_t kStack = 128 * 1024;
  std::unique_ptr<char[]> stack{new char[kStack]};
  ucontext_t context;
  bool done = false;
};
inline thread_local std::vector<Turn> turns;
inline thread_local ucontext_t scheduler;
inline thread_local const std::function<void()>* running = nullptr;

#if defined(__SANITIZE_ADDRESS__)
inline thread_local const void* scheduler_stack = nullptr;
inline thread_local size_t scheduler_size = 0;
#endif

inline void switch_to_scheduler(bool for_good) {
  Turn& turn = turns[threadIdx.x];
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(for_good ? nullptr : &fake_stack, scheduler_stack, scheduler_size);
#endif
  (void)for_good;
  swapcontext(&turn.context, &scheduler);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
}

inline void switch_to(Turn& turn) {
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(&fake_stack, turn.stack.get(), Turn::kStack);
#endif
  swapcontext(&scheduler, &turn.context);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
}

inline void wait_at(Meeting& meeting, int threads) {
  const int64_t time = meeting.times;
  if (++meeting.arrived == threads) {
    meeting.arrived = 0;
    ++meeting.times;
  }
  while (meeting.times == time) switch_to_scheduler(false);
}

inline void wait_for_block() { wait_at(block->meeting, block->threads); }
inline void wait_for_warp() { wait_at(block->warp_meeting[threadIdx.x / kWarp], kWarp); }

inline void start_turn() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_size);
#endif
  (*running)();
  turns[threadIdx.x].done = true;
  switch_to_scheduler(true);
}

// Runs the body for every block, by threads that take turns.
inline void run(Block& shared, int64_t blocks, const std::function<void()>& body) {
  block = &shared;
  running = &body;
  blockDim.x = shared.threads;
  if (turns.size() < static_cast<size_t>(shared.threads)) turns.resize(shared.threads);
  for (int64_t b = 0; b < blocks; ++b) {
    blockIdx.x = static_cast<unsigned>(b);
    std::memset(shared.shared.get(), 0xFF, shared.bytes);
    for (int index = 0; index < shared.threads; ++index) {
      Turn& turn = turns[index];
      turn.done = false;
      getcontext(&turn.context);
      turn.context.uc_stack.ss_sp = turn.stack.get();
      turn.context.uc_stack.ss_size = Turn::kStack;
      turn.context.uc_link = nullptr;
      makecontext(&turn.context, start_turn, 0);
    }
    for (bool any = true; any;) {
      any = false;
      for (int index = 0; index < shared.threads; ++index) {
        if (turns[index].done) continue;
        any = true;
        threadIdx.x = index;
        switch_to(turns[index]);
      }
    }
  }
}

#endif

}  // namespace emulator

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), int64_t blocks, int threads, int64_t shared, Stream,
            Arguments... arguments) {
  emulator::Block block(threads, shared);
  emulator::run(block, blocks, [&] { kernel(arguments...); });
}

}  // namespace crad

struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(8) uint2 {
  uint32_t x, y;
};

// ---- functions of the device ----

inline void __syncthreads() { crad::emulator::wait_for_block(); }

// A thread is at most one exchange ahead of another, so two slots for each suffice.
inline thread_local unsigned exchanges[1024];
template <class V>
V __shfl_xor_sync(unsigned, V value, int mask) {
  unsigned& number = exchanges[threadIdx.x];
  double* const slot = crad::emulator::block->slot.data() + number % 2 * blockDim.x;
  ++number;
  slot[threadIdx.x] = static_cast<double>(value);
  crad::emulator::wait_for_warp();
  return static_cast<V>(slot[threadIdx.x ^ mask]);
}

inline void __syncwarp() { crad::emulator::wait_for_warp(); }
inline unsigned __match_any_sync(unsigned, unsigned value) {
  unsigned& number = exchanges[threadIdx.x];
  double* const slot = crad::emulator::block->slot.data() + number % 2 * blockDim.x;
  ++number;
  slot[threadIdx.x] = value;
  crad::emulator::wait_for_warp();
  const double* const of_warp = slot + threadIdx.x / crad::kWarp * crad::kWarp;
  unsigned peers = 0;
  for (int lane = 0; lane < crad::kWarp; ++lane) peers |= unsigned{of_warp[lane] == value} << lane;
  return peers;
}
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }

template <class V>
V __ldg(const V* from) {
  return *from;
}
template <class V>
void __stcs(V* to, V value) {
  *to = value;
}

template <class V>
V atomicAdd(V* to, V value) {
  V before, after;
  __atomic_load(to, &before, __ATOMIC_RELAXED);
  do after = before + value;
  while (!__atomic_compare_exchange(to, &before, &after, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return before;
}
