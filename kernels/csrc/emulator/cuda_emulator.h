// Runs CUDA kernels on the host, so that the same source is tested on machines without a GPU.
//
// A CUDA thread is a fiber with a stack of its own. Barriers and shuffles give control back to a scheduler, which goes
// on when all threads of the block or warp have arrived, and aborts with a message when some never will. Blocks are
// spread over OpenMP threads; shared variables (KERNELS_SHARED) are `static thread_local`, and hold NaN when a block
// begins, as dynamic shared memory does (KERNELS_DYNAMIC_SHARED). KERNELS_SCHEDULE chooses the order in which threads
// run: 0 forwards, 1 backwards, above 1 shuffled by that seed. Results must not depend on it.
//
// Not covered: time, registers, bank conflicts, and how other warps see memory without a barrier.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#undef __global__
#undef __device__
#undef __host__
#undef __forceinline__
#undef __launch_bounds__
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define KERNELS_REGISTERS(...)

namespace emulator {

constexpr size_t kStackBytes = 128 * 1024;
constexpr int kWarpSize = 32;
constexpr uint32_t kRoundsBehind = 64;
constexpr size_t kSlotBytes = 64;
constexpr size_t kCopyBytes = 16;
constexpr size_t kMaxShared = 227 * 1024;  // of a block, on sm_90

enum class State { kReady, kAtBlockBarrier, kAtWarpBarrier, kDone };

// 16 bytes on their way; without a source zeros are. Neither source nor destination: the end of a group.
struct Copy {
  void* to;
  const void* from;
};

struct Fiber {
  void* stack_pointer = nullptr;
  char* stack = nullptr;
  State state = State::kReady;
  std::vector<Copy> copies;
};

struct Warp {
  int live = 0, arrived = 0;
  alignas(16) unsigned char slot[kWarpSize][kSlotBytes];  // what its threads show each other
};

// A block on one OS thread.
struct Block {
  dim3 grid, size;
  uint3 index{};
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  int current = 0, live = 0, arrived = 0;
  void* scheduler = nullptr;
  void* scheduler_fake_stack = nullptr;
  const void* scheduler_stack_bottom = nullptr;
  size_t scheduler_stack_size = 0;
  const std::function<void()>* kernel = nullptr;
  std::vector<const void*> shared;  // variables that were filled
  unsigned char* dynamic = nullptr;  // shared memory whose size the launch gives
  size_t dynamic_size = 0;

  Fiber& fiber() { return fibers[current]; }
  Warp& warp() { return warps[current / kWarpSize]; }
};

inline thread_local Block* block = nullptr;

// Keeps the registers that a call must keep, and goes on at another stack: System V x86-64 and AArch64.
extern "C" void kernels_emulator_switch(void** from, void* to);
#if defined(__x86_64__)
asm(R"(
.text
.weak kernels_emulator_switch
.type kernels_emulator_switch,@function
kernels_emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size kernels_emulator_switch, .-kernels_emulator_switch
)");
constexpr int kSavedRegisters = 6;
#else
#error "the emulator switches stacks on x86-64 alone"
#endif

inline void to_scheduler(bool for_good) {
#if defined(__SANITIZE_ADDRESS__)
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(for_good ? nullptr : &fake, block->scheduler_stack_bottom, block->scheduler_stack_size);
#endif
  kernels_emulator_switch(&block->fiber().stack_pointer, block->scheduler);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake, &block->scheduler_stack_bottom, &block->scheduler_stack_size);
#endif
  (void)for_good;
}

inline void to_fiber(int thread) {
  block->current = thread;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&block->scheduler_fake_stack, block->fiber().stack, kStackBytes);
#endif
  kernels_emulator_switch(&block->scheduler, block->fiber().stack_pointer);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(block->scheduler_fake_stack, nullptr, nullptr);
#endif
}

inline void fiber_main() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &block->scheduler_stack_bottom, &block->scheduler_stack_size);
#endif
  (*block->kernel)();
  block->fiber().state = State::kDone;
  --block->live;
  --block->warp().live;
  to_scheduler(true);
  std::abort();  // nobody goes on with a thread that is done
}

inline void block_barrier() {
  block->fiber().state = State::kAtBlockBarrier;
  ++block->arrived;
  to_scheduler(false);
}

inline void warp_barrier() {
  block->fiber().state = State::kAtWarpBarrier;
  ++block->warp().arrived;
  to_scheduler(false);
}

inline void prepare_fibers(int threads) {
  const size_t had = block->fibers.size();
  if (had < static_cast<size_t>(threads)) block->fibers.resize(threads);
  for (size_t i = had; i < block->fibers.size(); ++i) {
    void* memory = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
      std::fprintf(stderr, "emulator: no memory for the stacks of %d threads\n", threads);
      std::abort();
    }
    block->fibers[i].stack = static_cast<char*>(memory);
  }
  for (int i = 0; i < threads; ++i) {
    Fiber& fiber = block->fibers[i];
    void** top = reinterpret_cast<void**>(fiber.stack + kStackBytes - 64);
    *--top = nullptr;  // what would be returned to
    *--top = reinterpret_cast<void*>(fiber_main);
    for (int r = 0; r < kSavedRegisters; ++r) *--top = nullptr;
    fiber.stack_pointer = top;
    fiber.state = State::kReady;
    fiber.copies.clear();
  }
}

inline bool release(int first, int last, State waiting) {
  for (int i = first; i < last; ++i) {
    if (block->fibers[i].state == waiting) block->fibers[i].state = State::kReady;
  }
  return true;
}

// Lets go on what waits at a barrier that all have reached.
inline bool release_barriers(int threads) {
  bool released = false;
  for (size_t w = 0; w < block->warps.size(); ++w) {
    Warp& warp = block->warps[w];
    if (warp.arrived == 0 || warp.arrived != warp.live) continue;
    warp.arrived = 0;
    const int first = static_cast<int>(w) * kWarpSize;
    released = release(first, std::min(threads, first + kWarpSize), State::kAtWarpBarrier);
  }
  if (block->arrived != 0 && block->arrived == block->live) {
    block->arrived = 0;
    released = release(0, threads, State::kAtBlockBarrier);
  }
  return released;
}

inline uint32_t schedule() {
  const char* text = std::getenv("KERNELS_SCHEDULE");
  return text == nullptr ? 0 : static_cast<uint32_t>(std::atoi(text));
}

inline void run_block(uint32_t schedule, const std::function<void()>& kernel) {
  const int threads = static_cast<int>(block->size.x * block->size.y * block->size.z);
  block->kernel = &kernel;
  block->live = threads;
  block->arrived = 0;
  block->shared.clear();
  if (block->dynamic_size > 0) std::memset(block->dynamic, 0xff, block->dynamic_size);
  block->warps.resize((threads + kWarpSize - 1) / kWarpSize);
  for (size_t w = 0; w < block->warps.size(); ++w) {
    block->warps[w].arrived = 0;
    block->warps[w].live = std::min(kWarpSize, threads - static_cast<int>(w) * kWarpSize);
  }
  prepare_fibers(threads);
  std::vector<int> order(threads);
  for (int i = 0; i < threads; ++i) order[i] = schedule == 1 ? threads - 1 - i : i;
  uint32_t state = schedule * 2654435761u + block->index.x;
  uint32_t awake = ~0u, round = 0;
  while (block->live > 0) {
    for (int i = threads - 1; schedule > 1 && i > 0; --i) {
      state = state * 1664525u + 1013904223u;
      std::swap(order[i], order[(state >> 8) % (i + 1)]);
    }
    bool progress = false;
    if (schedule > 1 && round++ % kRoundsBehind == 0) awake = state >> 16;  // some warps fall far behind, as on a GPU
    for (int thread : order) {
      if (block->fibers[thread].state != State::kReady) continue;
      progress = true;
      if ((awake >> (thread / kWarpSize % 16) & 1u) == 0) continue;
      to_fiber(thread);
    }
    progress = release_barriers(threads) || progress;
    if (!progress) {
      std::fprintf(stderr, "emulator: block %u waits at a barrier that some of its threads never reach\n", block->index.x);
      std::abort();
    }
  }
}

// Brings in the copies of this thread but for those of the last `left` groups.
inline void wait_for_copies(int left) {
  std::vector<Copy>& copies = block->fiber().copies;
  size_t end = 0;
  for (size_t i = copies.size(), ends = 0; i-- > 0 && end == 0;) {
    if (copies[i].to == nullptr && ends++ == static_cast<size_t>(left)) end = i + 1;
  }
  for (size_t i = 0; i < end; ++i) {
    if (copies[i].to == nullptr) continue;
    if (copies[i].from == nullptr) {
      std::memset(copies[i].to, 0, kCopyBytes);
    } else {
      std::memcpy(copies[i].to, copies[i].from, kCopyBytes);
    }
  }
  copies.erase(copies.begin(), copies.begin() + end);
}

template <class Kernel>
void launch(dim3 grid, dim3 size, size_t shared, Kernel kernel) {
  const std::function<void()> body = kernel;
  const int64_t blocks = static_cast<int64_t>(grid.x) * grid.y * grid.z;
  const uint32_t order = schedule();
#pragma omp parallel
  {
    static thread_local Block own;
    block = &own;
    own.grid = grid;
    own.size = size;
    const size_t rounded = (shared + kCopyBytes - 1) / kCopyBytes * kCopyBytes;
    own.dynamic = static_cast<unsigned char*>(std::aligned_alloc(kCopyBytes, rounded));
    own.dynamic_size = shared;
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < blocks; ++i) {
      own.index = uint3{static_cast<unsigned>(i % grid.x), static_cast<unsigned>(i / grid.x % grid.y),
                        static_cast<unsigned>(i / grid.x / grid.y)};
      run_block(order, body);
    }
    std::free(own.dynamic);
  }
}

// Fills a shared variable with NaN for the first thread of a block that comes to it: shared memory begins with anything.
inline void begin_shared(void* variable, size_t size) {
  std::vector<const void*>& begun = block->shared;
  if (std::find(begun.begin(), begun.end(), variable) != begun.end()) return;
  begun.push_back(variable);
  std::memset(variable, 0xff, size);
}

inline uint3 thread_index() {
  const unsigned t = static_cast<unsigned>(block->current);
  return uint3{t % block->size.x, t / block->size.x % block->size.y, t / (block->size.x * block->size.y)};
}

// What another thread of the warp holds; all threads of the warp take part.
template <class T>
T shuffle(T value, int source) {
  static_assert(sizeof(T) <= kSlotBytes);
  Warp& warp = block->warp();
  std::memcpy(warp.slot[block->current % kWarpSize], &value, sizeof(T));
  warp_barrier();
  T result;
  std::memcpy(&result, warp.slot[source % kWarpSize], sizeof(T));
  warp_barrier();
  return result;
}

// Whether a thread of the warp says so; all threads of the warp take part.
inline bool any_of_warp(bool value) {
  Warp& warp = block->warp();
  warp.slot[block->current % kWarpSize][0] = value ? 1 : 0;
  warp_barrier();
  bool result = false;
  for (int i = 0; i < kWarpSize; ++i) result = result || warp.slot[i][0] != 0;
  warp_barrier();
  return result;
}

}  // namespace emulator

#define threadIdx (emulator::thread_index())
#define blockIdx (emulator::block->index)
#define blockDim (emulator::block->size)
#define gridDim (emulator::block->grid)
#define KERNELS_SHARED(type, name, extents)  \
  static thread_local type name extents;     \
  emulator::begin_shared(&name, sizeof(name))
#define KERNELS_DYNAMIC_SHARED(name) unsigned char* name = emulator::block->dynamic
#define KERNELS_LAUNCH(kernel, grid, size, shared, stream, ...) \
  ((void)(stream), emulator::launch((grid), (size), (shared), [=] { kernel(__VA_ARGS__); }))
#define KERNELS_LAUNCH_STATUS() kOk

inline void __syncthreads() { emulator::block_barrier(); }
inline void __syncwarp(unsigned = 0xffffffffu) { emulator::warp_barrier(); }
template <class T>
T __shfl_xor_sync(unsigned, T value, int mask, int = 32) {
  return emulator::shuffle(value, (emulator::block->current % emulator::kWarpSize) ^ mask);
}
template <class T>
T __shfl_sync(unsigned, T value, int source, int = 32) {
  return emulator::shuffle(value, source);
}
inline bool __any_sync(unsigned, bool value) { return emulator::any_of_warp(value); }
using std::max;
using std::min;
inline float rsqrtf(float value) { return 1.0f / std::sqrt(value); }
