// Rows that stay in registers: a warp takes one of up to 1,024 columns, a block of 256 threads one of up to 8,192, with
// as few packs a thread as hold it.
//
// Sums over rows are kept in registers by each thread, added up in shared memory, written once a block, and added up by
// a second kernel in the order of blocks: the same bits every time.
#pragma once

#include "portable.h"

namespace kernels {
namespace {

constexpr int kMaxPacks = 4;  // of a thread
constexpr int kNarrowThreads = 128;  // four rows a block
constexpr int kWideThreads = 256;    // one row a block
constexpr int64_t kNarrowWidth = kWarp * kMaxPacks * kPack;
constexpr int64_t kWideWidth = kWideThreads * kMaxPacks * kPack;
constexpr int kMaxWarps = kWideThreads / kWarp;
constexpr int kReduceWarps = 8;
constexpr int kReduceThreads = kReduceWarps * kWarp;

inline bool fits_registers(int64_t width) {
  return width > 0 && width % kPack == 0 && width <= kWideWidth;
}

inline int64_t rows_per_block(int64_t width) { return width <= kNarrowWidth ? kNarrowThreads / kWarp : 1; }

// How a row is spread over threads: over a warp or over a whole block, and how many packs each of them has.
template <int kThreadsOfRow, int kPacksOfThread>
struct Shape {
  static constexpr int kThreads = kThreadsOfRow, kPacks = kPacksOfThread;
  static constexpr int kBlock = kThreads == kWarp ? kNarrowThreads : kWideThreads;
};

// Calls the function with the shape of rows of this width.
template <class Function>
int32_t with_shape(int64_t width, Function function) {
  if (!fits_registers(width)) return kUnsupported;
  if (width <= kNarrowWidth) return function(Shape<kWarp, kMaxPacks>{});
  if (width <= kWideThreads * kPack) return function(Shape<kWideThreads, 1>{});
  if (width <= 2 * kWideThreads * kPack) return function(Shape<kWideThreads, 2>{});
  return function(Shape<kWideThreads, kMaxPacks>{});
}

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

// A row of a norm, as its gradient needs it.
struct NormRow {
  const void* weight;  // [width]
  Type parameter;
  int64_t width;
  bool centred;  // else the row keeps its mean
  float mean, rstd;
};

// Sums of one block over its rows, for the norm's parameters.
template <class S>
struct ParameterSums {
  float weight[S::kPacks][kPack] = {};
  float shift[S::kPacks][kPack] = {};
};

// The gradient of a row, whose parameter gradients are added to `sums`. read(pack, dy, z) gives what reaches the norm
// and what it normalised; write(j, pack, gradient) takes the gradient of that, the thread's pack j.
template <class S, class Read, class Write>
__device__ __forceinline__ void norm_gradient(const NormRow& row, int lane, float* shared, ParameterSums<S>& sums,
                                              Read read, Write write) {
  const int64_t packs = row.width / kPack;
  float scaled[S::kPacks][kPack];      // dy * weight
  float normalized[S::kPacks][kPack];  // (z - mean) * rstd
  float sum = 0.0f, product = 0.0f;
#pragma unroll
  for (int j = 0; j < S::kPacks; ++j) {
    const int64_t pack = lane + j * S::kThreads;
    if (pack >= packs) continue;
    float weight[kPack];
    read(pack, scaled[j], normalized[j]);
    load_parameter(row.weight, row.parameter, pack, weight);
#pragma unroll
    for (int i = 0; i < kPack; ++i) {
      const float dy = scaled[j][i];
      normalized[j][i] = (normalized[j][i] - row.mean) * row.rstd;
      sums.weight[j][i] += dy * normalized[j][i];
      sums.shift[j][i] += dy;
      scaled[j][i] = dy * weight[i];
      sum += scaled[j][i];
      product += scaled[j][i] * normalized[j][i];
    }
  }
  sum = row.centred ? row_sum<S::kThreads>(sum, shared) / row.width : 0.0f;
  product = row_sum<S::kThreads>(product, shared) / row.width;
#pragma unroll
  for (int j = 0; j < S::kPacks; ++j) {
    const int64_t pack = lane + j * S::kThreads;
    if (pack >= packs) continue;
    float gradient[kPack];
#pragma unroll
    for (int i = 0; i < kPack; ++i) gradient[i] = (scaled[j][i] - sum - normalized[j][i] * product) * row.rstd;
    write(j, pack, gradient);
  }
}

// Adds the sums of the rows of a block, one after the other, and writes them to `out`, a row of `packs` packs.
template <class S>
__device__ __forceinline__ void write_sums(float* out, int64_t packs, int lane,
                                           const float (&values)[S::kPacks][kPack], float* shared) {
  const int rows_per_block = blockDim.x / S::kThreads, own = threadIdx.x / S::kThreads;
  for (int turn = 0; turn < rows_per_block; ++turn) {
    if (own == turn) {
#pragma unroll
      for (int j = 0; j < S::kPacks; ++j) {
        const int64_t pack = lane + j * S::kThreads;
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

// Adds up sums[block][blockIdx.y][column] over the blocks: each warp every eighth of them in their order, then those of
// the warps in theirs.
__device__ __forceinline__ void reduce_blocks(const float* sums, int64_t blocks, int64_t width, float* out) {
  KERNELS_SHARED(float, shared, [kReduceWarps][kWarp]);
  if (out == nullptr) return;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kWarp + lane;
  float total = 0.0f;
  for (int64_t block = warp; block < blocks && column < width; block += kReduceWarps) {
    total += sums[(block * gridDim.y + blockIdx.y) * width + column];
  }
  shared[warp][lane] = total;
  __syncthreads();
  if (warp != 0 || column >= width) return;
  for (int w = 1; w < kReduceWarps; ++w) total += shared[w][lane];
  out[column] = total;
}

inline dim3 reduce_grid(int64_t width, unsigned sums) {
  return dim3(static_cast<unsigned>((width + kWarp - 1) / kWarp), sums);
}

}  // namespace
}  // namespace kernels
