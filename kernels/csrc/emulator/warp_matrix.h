// The tensor cores and asynchronous copies of ../common/warp_matrix.h on the host.
//
// Fragments lie in threads exactly as PTX has them. An asynchronous copy leaves NaN where it goes until it is waited for.
#pragma once

#include "cuda_emulator.h"

namespace emulator {

struct Fragments {
  uint32_t a[4], b[2];
};

template <class T>
float half_of(uint32_t pair, int which) {
  const uint16_t bits = static_cast<uint16_t>(pair >> (16 * which));
  T value;
  std::memcpy(static_cast<void*>(&value), &bits, sizeof(bits));
  return static_cast<float>(value);
}

// What the thread of a lane shows.
template <class T>
T shown_by(int lane) {
  T value;
  std::memcpy(&value, block->warp().slot[lane], sizeof(T));
  return value;
}

template <class T>
void show(const T& value) {
  static_assert(sizeof(T) <= kSlotBytes);
  std::memcpy(block->warp().slot[block->current % kWarpSize], &value, sizeof(T));
  warp_barrier();
}

template <class T>
float element_of_a(int row, int column) {
  const Fragments held = shown_by<Fragments>(4 * (row % 8) + column % 8 / 2);
  return half_of<T>(held.a[row / 8 + 2 * (column / 8)], column % 2);
}

template <class T>
float element_of_b(int row, int column) {
  const Fragments held = shown_by<Fragments>(4 * column + row % 8 / 2);
  return half_of<T>(held.b[row / 8], row % 2);
}

// Aborts with a message if the address is no multiple of 16.
inline void require_aligned(const void* address, const char* what) {
  if (reinterpret_cast<uintptr_t>(address) % 16 == 0) return;
  std::fprintf(stderr, "emulator: %s of 16 bytes\n", what);
  std::abort();
}

inline void load_matrices(uint32_t (&out)[4], const void* row, bool transposed) {
  require_aligned(row, "a row of a matrix begins at no multiple");
  show(row);
  const int g = block->current % kWarpSize / 4, t = block->current % 4;
  for (int matrix = 0; matrix < 4; ++matrix) {
    uint16_t pair[2];
    for (int i = 0; i < 2; ++i) {
      const int r = transposed ? 2 * t + i : g, c = transposed ? g : 2 * t + i;
      pair[i] = static_cast<const uint16_t*>(shown_by<const void*>(8 * matrix + r))[c];
    }
    std::memcpy(&out[matrix], pair, sizeof(pair));
  }
  warp_barrier();
}

}  // namespace emulator

namespace kernels {

template <class T>
void multiply_add(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  emulator::Fragments held;
  std::memcpy(held.a, a, sizeof(a));
  std::memcpy(held.b, b, sizeof(b));
  emulator::show(held);
  const int lane = emulator::block->current % emulator::kWarpSize;
  float sums[4];
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
    sums[i] = d[i];
    for (int k = 0; k < 16; ++k) sums[i] += emulator::element_of_a<T>(row, k) * emulator::element_of_b<T>(k, column);
  }
  emulator::warp_barrier();
  std::memcpy(d, sums, sizeof(sums));
}

inline void load_matrices(uint32_t (&out)[4], const void* row) { emulator::load_matrices(out, row, false); }
inline void load_transposed(uint32_t (&out)[4], const void* row) { emulator::load_matrices(out, row, true); }

inline void copy_async(void* to, const void* from, bool there) {
  for (const void* each : {const_cast<const void*>(to), from}) {
    emulator::require_aligned(each, "an asynchronous copy is between addresses that are no multiples");
  }
  std::memset(to, 0xff, emulator::kCopyBytes);
  emulator::block->fiber().copies.push_back({to, there ? from : nullptr});
}

inline void end_copies() { emulator::block->fiber().copies.push_back({nullptr, nullptr}); }

template <int kLeft>
void wait_for_copies() {
  emulator::wait_for_copies(kLeft);
}

inline float exp2_approximate(float x) { return std::exp2(x); }

}  // namespace kernels
