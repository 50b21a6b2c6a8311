// Bias, dropout, residual and LayerNorm or RMSNorm in one pass, and their gradients in another.
//
// A row stays in registers: a warp takes a row of up to 1,024 columns, a block of 256 threads one of up to 8,192. The
// variance is that of the centred row, in fp32. Parameter gradients are summed in registers over the rows of a block,
// written once a block, and added up by a second kernel in the order of blocks: the same bits every time.
#include "../common/norm.h"

#include "../common/portable.h"

namespace kernels {
namespace {

constexpr int kPacksPerThread = 4;
constexpr int kNarrowThreads = 128;  // four rows a block
constexpr int kWideThreads = 256;    // one row a block
constexpr int64_t kNarrowWidth = kWarp * kPacksPerThread * kPack;
constexpr int64_t kWideWidth = kWideThreads * kPacksPerThread * kPack;
constexpr int kMaxWarps = kWideThreads / kWarp;
constexpr int64_t kReduceThreads = 128;
constexpr int64_t kAddThreads = 256;

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

template <class In, class Out, int kThreadsPerRow>
__global__ void __launch_bounds__(kThreadsPerRow == kWarp ? kNarrowThreads : kWideThreads)
    norm_forward(const NormForward args) {
  __shared__ float shared[kMaxWarps];
  const int lane = threadIdx.x % kThreadsPerRow;
  const int rows_per_block = blockDim.x / kThreadsPerRow;
  const int64_t packs = args.width / kPack;
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * rows_per_block + threadIdx.x / kThreadsPerRow; row < args.rows;
       row += static_cast<int64_t>(gridDim.x) * rows_per_block) {
    float z[kPacksPerThread][kPack];
    float total = 0.0f;
#pragma unroll
    for (int j = 0; j < kPacksPerThread; ++j) {
      const int64_t pack = lane + j * kThreadsPerRow;
      if (pack >= packs) continue;
      const int64_t at = row * packs + pack;
      float (&values)[kPack] = z[j];
      load(static_cast<const In*>(args.x), at, values);
      float other[kPack];
      if (args.bias != nullptr) {
        load_parameter(args.bias, args.parameter, pack, other);
#pragma unroll
        for (int i = 0; i < kPack; ++i) values[i] += other[i];
      }
      if (args.dropout.threshold != 0) drop(values, args.dropout, row, pack);
      if (args.residual != nullptr) {
        load(static_cast<const In*>(args.residual), at, other);
#pragma unroll
        for (int i = 0; i < kPack; ++i) values[i] += other[i];
      }
      if (args.z != nullptr) {
        store(static_cast<In*>(args.z), at, values);
#pragma unroll
        for (int i = 0; i < kPack; ++i) values[i] = to_float(from_float<In>(values[i]));  // as the backward pass sees it
      }
#pragma unroll
      for (int i = 0; i < kPack; ++i) total += values[i];
    }
    const float mean = args.mean == nullptr ? 0.0f : row_sum<kThreadsPerRow>(total, shared) / args.width;
    float squares = 0.0f;
#pragma unroll
    for (int j = 0; j < kPacksPerThread; ++j) {
      if (lane + j * kThreadsPerRow >= packs) continue;
#pragma unroll
      for (int i = 0; i < kPack; ++i) squares += (z[j][i] - mean) * (z[j][i] - mean);
    }
    const float rstd = rsqrtf(row_sum<kThreadsPerRow>(squares, shared) / args.width + args.eps);
    if (lane == 0) {
      if (args.mean != nullptr) args.mean[row] = mean;
      args.rstd[row] = rstd;
    }
#pragma unroll
    for (int j = 0; j < kPacksPerThread; ++j) {
      const int64_t pack = lane + j * kThreadsPerRow;
      if (pack >= packs) continue;
      float weight[kPack], shift[kPack] = {};
      load_parameter(args.weight, args.parameter, pack, weight);
      if (args.shift != nullptr) load_parameter(args.shift, args.parameter, pack, shift);
#pragma unroll
      for (int i = 0; i < kPack; ++i) z[j][i] = (z[j][i] - mean) * rstd * weight[i] + shift[i];
      store(static_cast<Out*>(args.y), row * packs + pack, z[j]);
    }
  }
}

// Sums of one block over its rows.
struct ColumnSums {
  float weight[kPacksPerThread][kPack] = {};
  float shift[kPacksPerThread][kPack] = {};
  float bias[kPacksPerThread][kPack] = {};
};

template <class In, class Out, int kThreadsPerRow>
__device__ __forceinline__ void backward_row(const NormBackward& args, int64_t row, int lane, float* shared,
                                             ColumnSums& sums) {
  const int64_t packs = args.width / kPack;
  const float mean = args.mean == nullptr ? 0.0f : args.mean[row];
  const float rstd = args.rstd[row];
  float scaled[kPacksPerThread][kPack];      // dy * weight
  float normalized[kPacksPerThread][kPack];  // (z - mean) * rstd
  float sum = 0.0f, product = 0.0f;
#pragma unroll
  for (int j = 0; j < kPacksPerThread; ++j) {
    const int64_t pack = lane + j * kThreadsPerRow;
    if (pack >= packs) continue;
    float weight[kPack];
    load(static_cast<const Out*>(args.dy), row * packs + pack, scaled[j]);
    load(static_cast<const In*>(args.z), row * packs + pack, normalized[j]);
    load_parameter(args.weight, args.parameter, pack, weight);
#pragma unroll
    for (int i = 0; i < kPack; ++i) {
      const float dy = scaled[j][i];
      normalized[j][i] = (normalized[j][i] - mean) * rstd;
      sums.weight[j][i] += dy * normalized[j][i];
      sums.shift[j][i] += dy;
      scaled[j][i] = dy * weight[i];
      sum += scaled[j][i];
      product += scaled[j][i] * normalized[j][i];
    }
  }
  sum = args.mean == nullptr ? 0.0f : row_sum<kThreadsPerRow>(sum, shared) / args.width;
  product = row_sum<kThreadsPerRow>(product, shared) / args.width;
#pragma unroll
  for (int j = 0; j < kPacksPerThread; ++j) {
    const int64_t pack = lane + j * kThreadsPerRow;
    if (pack >= packs) continue;
    const int64_t at = row * packs + pack;
    float gradient[kPack];
#pragma unroll
    for (int i = 0; i < kPack; ++i) gradient[i] = (scaled[j][i] - sum - normalized[j][i] * product) * rstd;
    if (args.dz != nullptr) {
      float dz[kPack];
      load(static_cast<const In*>(args.dz), at, dz);
#pragma unroll
      for (int i = 0; i < kPack; ++i) gradient[i] += dz[i];
    }
    if (args.dresidual != nullptr) store(static_cast<In*>(args.dresidual), at, gradient);
    if (args.dropout.threshold != 0) drop(gradient, args.dropout, row, pack);
    store(static_cast<In*>(args.dx), at, gradient);
#pragma unroll
    for (int i = 0; i < kPack; ++i) sums.bias[j][i] += gradient[i];
  }
}

// Adds the sums of the rows of a block, one after the other, and writes them to the block's part of `partial`.
template <int kThreadsPerRow>
__device__ __forceinline__ void write_sums(const NormBackward& args, int lane, const float (&values)[kPacksPerThread][kPack],
                                           float* shared, int64_t which) {
  const int64_t packs = args.width / kPack;
  float* out = args.partial + (static_cast<int64_t>(blockIdx.x) * 3 + which) * args.width;
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

template <class In, class Out, int kThreadsPerRow>
__global__ void __launch_bounds__(kThreadsPerRow == kWarp ? kNarrowThreads : kWideThreads)
    norm_backward(const NormBackward args) {
  __shared__ float shared[kMaxWarps];
  __shared__ float columns[kThreadsPerRow == kWarp ? kNarrowWidth : 1];
  const int lane = threadIdx.x % kThreadsPerRow;
  const int rows_per_block = blockDim.x / kThreadsPerRow;
  ColumnSums sums;
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * rows_per_block + threadIdx.x / kThreadsPerRow; row < args.rows;
       row += static_cast<int64_t>(gridDim.x) * rows_per_block) {
    backward_row<In, Out, kThreadsPerRow>(args, row, lane, shared, sums);
  }
  write_sums<kThreadsPerRow>(args, lane, sums.weight, columns, 0);
  if (args.dshift != nullptr) write_sums<kThreadsPerRow>(args, lane, sums.shift, columns, 1);
  if (args.dbias != nullptr) write_sums<kThreadsPerRow>(args, lane, sums.bias, columns, 2);
}

// Adds up the blocks' sums of a column in their order.
__global__ void __launch_bounds__(kReduceThreads) reduce_blocks(const NormBackward args) {
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kReduceThreads + threadIdx.x;
  float* const outputs[3] = {args.dweight, args.dshift, args.dbias};
  float* out = outputs[blockIdx.y];
  if (column >= args.width || out == nullptr) return;
  float total = 0.0f;
  for (int64_t block = 0; block < args.blocks; ++block) total += args.partial[(block * 3 + blockIdx.y) * args.width + column];
  out[column] = total;
}

template <class T>
__global__ void __launch_bounds__(kAddThreads) dropout_add(const DropoutAdd args) {
  const int64_t row_packs = args.width / kPack, packs = args.rows * row_packs;
  for (int64_t at = static_cast<int64_t>(blockIdx.x) * kAddThreads + threadIdx.x; at < packs;
       at += static_cast<int64_t>(gridDim.x) * kAddThreads) {
    float values[kPack], residual[kPack];
    load(static_cast<const T*>(args.x), at, values);
    if (args.dropout.threshold != 0) drop(values, args.dropout, at / row_packs, at % row_packs);
    if (args.residual != nullptr) {
      load(static_cast<const T*>(args.residual), at, residual);
#pragma unroll
      for (int i = 0; i < kPack; ++i) values[i] += residual[i];
    }
    store(static_cast<T*>(args.out), at, values);
  }
}

int64_t rows_per_block(int64_t width) { return width <= kNarrowWidth ? kNarrowThreads / kWarp : 1; }

bool takes(int64_t width) { return width > 0 && width % kPack == 0 && width <= kWideWidth; }

template <class Function>
int32_t with_types(Type input, Type output, Function function) {
  return with_type(input, [&](auto in) { return with_type(output, [&](auto out) { return function(in, out); }); });
}

}  // namespace

KERNELS_EXPORT int32_t kernels_norm_forward(const NormForward* args, int64_t blocks, void* stream) {
  if (!takes(args->width)) return kUnsupported;
  if (args->rows == 0) return kOk;
  const int64_t needed = (args->rows + rows_per_block(args->width) - 1) / rows_per_block(args->width);
  const dim3 grid(static_cast<unsigned>(needed < blocks ? needed : blocks));
  return with_types(args->input, args->output, [&](auto in, auto out) -> int32_t {
    using In = decltype(in);
    using Out = decltype(out);
    if (args->width <= kNarrowWidth) {
      KERNELS_LAUNCH((norm_forward<In, Out, kWarp>), grid, dim3(kNarrowThreads), 0, stream, *args);
    } else {
      KERNELS_LAUNCH((norm_forward<In, Out, kWideThreads>), grid, dim3(kWideThreads), 0, stream, *args);
    }
    return KERNELS_LAUNCH_STATUS();
  });
}

KERNELS_EXPORT int32_t kernels_norm_backward(const NormBackward* args, void* stream) {
  if (!takes(args->width)) return kUnsupported;
  const dim3 grid(static_cast<unsigned>(args->blocks));
  return with_types(args->input, args->output, [&](auto in, auto out) -> int32_t {
    using In = decltype(in);
    using Out = decltype(out);
    if (args->width <= kNarrowWidth) {
      KERNELS_LAUNCH((norm_backward<In, Out, kWarp>), grid, dim3(kNarrowThreads), 0, stream, *args);
    } else {
      KERNELS_LAUNCH((norm_backward<In, Out, kWideThreads>), grid, dim3(kWideThreads), 0, stream, *args);
    }
    const int64_t column_blocks = (args->width + kReduceThreads - 1) / kReduceThreads;
    KERNELS_LAUNCH(reduce_blocks, dim3(static_cast<unsigned>(column_blocks), 3), dim3(kReduceThreads), 0, stream, *args);
    return KERNELS_LAUNCH_STATUS();
  });
}

KERNELS_EXPORT int32_t kernels_dropout_add(const DropoutAdd* args, int64_t blocks, void* stream) {
  if (args->width % kPack != 0) return kUnsupported;
  const int64_t packs = args->rows * (args->width / kPack), needed = (packs + kAddThreads - 1) / kAddThreads;
  if (needed == 0) return kOk;
  const dim3 grid(static_cast<unsigned>(needed < blocks ? needed : blocks));
  return with_type(args->type, [&](auto zero) -> int32_t {
    KERNELS_LAUNCH(dropout_add<decltype(zero)>, grid, dim3(kAddThreads), 0, stream, *args);
    return KERNELS_LAUNCH_STATUS();
  });
}

}  // namespace kernels
