// What the kernels of attention on a GPU share: where a block works, how its rows reach shared memory, and dropout.
#pragma once

#include "attention.h"
#include "warp_matrix.h"

namespace kernels {

// Numbers between the begins of two rows in shared memory: 16 bytes more than a row has, so that the eight rows of a
// matrix lie in different banks.
template <int kSize>
constexpr int kRowStride = kSize + 8;

// Rows [first, first + rows of the tile) of a sequence; sequence S is the filler behind the last one.
struct Tile {
  int sequence, first;
  int64_t start;  // of the sequence, in tokens of the batch
  int length;     // of the sequence

  __device__ __forceinline__ bool empty() const { return first >= length; }
};

// Tiles that a launch needs at most, whatever the lengths of S sequences are: those of sequence s are numbered from
// boundaries[s] / rows + s on, and the numbers up to the next sequence's are enough for any length.
inline int64_t tiles_of(const Attention& in, int rows) { return in.tokens / rows + in.sequences + 1; }

// Tile `number`, by bisection; empty where the sequence is shorter than its numbers reach.
__device__ __forceinline__ Tile find_tile(const Attention& in, int64_t number, int rows) {
  int64_t low = 0, high = in.sequences;
  while (low < high) {
    const int64_t middle = (low + high + 1) / 2;
    if (in.boundaries[middle] / rows + middle <= number) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  const int64_t start = in.boundaries[low], end = low < in.sequences ? in.boundaries[low + 1] : in.tokens;
  const int64_t first = (number - start / rows - low) * rows;
  return Tile{static_cast<int>(low), static_cast<int>(first), start, static_cast<int>(end - start)};
}

// Begins to copy rows [first, first + kRows) of a head to shared memory, [kRows, kRowStride]; from `length` on they are
// zero. `stride` numbers lie between the rows of `head`, which points at row 0.
template <class T, int kSize, int kRows, int kThreads>
__device__ __forceinline__ void copy_rows(T* shared, const T* head, int64_t stride, int first, int length) {
  constexpr int kPacks = kSize / kPack;
  for (int i = threadIdx.x; i < kRows * kPacks; i += kThreads) {
    const int row = i / kPacks, column = i % kPacks * kPack;
    const bool there = first + row < length;
    const T* from = head + (there ? (first + row) * stride : 0) + column;
    copy_async(shared + row * kRowStride<kSize> + column, from, there);
  }
}

// Which of 32 neighbouring keys dropout leaves to a row, that is token * H + head: bit k for key 8 group + k. Each of the
// four threads of a quad draws for eight of them.
__device__ __forceinline__ uint32_t kept_of_quad(const Dropout& dropout, uint64_t seed, int64_t row, uint32_t group) {
  const uint32_t t = threadIdx.x % 4;
  const Draws draws = philox(seed, dropout.site, static_cast<uint64_t>(row), group + t);
  uint32_t kept = 0;
#pragma unroll
  for (int i = 0; i < kDraws; ++i) kept |= (draws.at(i) >= dropout.threshold ? 1u : 0u) << i;
  kept <<= kDraws * t;
  kept |= __shfl_xor_sync(0xffffffffu, kept, 1);
  return kept | __shfl_xor_sync(0xffffffffu, kept, 2);
}

}  // namespace kernels
