// Rows that stay in registers: a warp takes one of up to 1,024 columns, a block of 256 threads one of up to 8,192.
//
// Sums over rows are kept in registers by each thread, added up in shared memory, written once a block, and added up by
// a second kernel in the order of blocks: the same bits every time.
#pragma once

#include "portable.h"

namespace kernels {
namespace {

constexpr int kPacksPerThread = 4;
constexpr int kNarrowThreads = 128;  // four rows a block
constexpr int kWideThreads = 256;    // one row a block
constexpr int64_t kNarrowWidth = kWarp * kPacksPerThread * kPack;
constexpr int64_t kWideWidth = kWideThreads * kPacksPerThread * kPack;
constexpr int kMaxWarps = kWideThreads / kWarp;
constexpr int64_t kReduceThreads = 128;

inline bool fits_registers(int64_t width) {
  return width > 0 && width % kPack == 0 && width <= kWideWidth;
}

inline int64_t rows_per_block(int64_t width) { return width <= kNarrowWidth ? kNarrowThreads / kWarp : 1; }

// The threads of a block that take a row each of kThreadsPerRow threads.
template <int kThreadsPerRow>
constexpr int kRowThreads = kThreadsPerRow == kWarp ? kNarrowThreads : kWideThreads;

// Sum over the threads of a row: a warp, or the whole block.
template <int kThreadsPerRow>
__device__ __forceinline__ float row_sum(float value, float* shared) {
  value = warp_sum(value);
  if constexpr (kThreadsPerRow > kWarp) {
    const int warp = threadIdx.x / kWarp;
    __syncthreads();  // the numbers of the last sum have been read
    if (threadIdx.x % kWarp == 0) shared[warp] = value;
    __syncthreads();
    value = 0.0f;
#pragma unroll
    for (int i = 0; i < kThreadsPerRow / kWarp; ++i) value += shared[i];
  }
  return value;
}

// Adds the sums of the rows of a block, one after the other, and writes them to `out`, a row of `packs` packs.
template <int kThreadsPerRow>
__device__ __forceinline__ void write_sums(float* out, int64_t packs, int lane,
                                           const float (&values)[kPacksPerThread][kPack], float* shared) {
  const int rows_per_block = blockDim.x / kThreadsPerRow, own = threadIdx.x / kThreadsPerRow;
  for (int turn = 0; turn < rows_per_block; ++turn) {
    if (own == turn) {
#pragma unroll
      for (int j = 0; j < kPacksPerThread; ++j) {
        const int64_t pack = lane + j * kThreadsPerRow;
        if (pack >= packs) continue;
#pragma unroll
        for (int i = 0; i < kPack; ++i) {
          float* cell = (rows_per_block > 1 ? shared : out) + pack * kPack + i;
          *cell = (turn > 0 ? *cell : 0.0f) + values[j][i];
          if (rows_per_block > 1 && turn == rows_per_block - 1) out[pack * kPack + i] = *cell;
        }
      }
    }
    __syncthreads();
  }
}

// Adds up sums[block][blockIdx.y][column] over the blocks, in their order.
__device__ __forceinline__ void reduce_blocks(const float* sums, int64_t blocks, int64_t width, float* out) {
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kReduceThreads + threadIdx.x;
  if (column >= width || out == nullptr) return;
  float total = 0.0f;
  for (int64_t block = 0; block < blocks; ++block) total += sums[(block * gridDim.y + blockIdx.y) * width + column];
  out[column] = total;
}

inline dim3 reduce_grid(int64_t width, unsigned sums) {
  return dim3(static_cast<unsigned>((width + kReduceThreads - 1) / kReduceThreads), sums);
}

}  // namespace
}  // namespace kernels
