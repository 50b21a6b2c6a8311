// Bias, dropout, residual and LayerNorm or RMSNorm in one pass, and their gradients in another.
//
// The variance is that of the centred row, in fp32. Rows, and sums over them for the parameters: ../common/rows.h.
#include "../common/norm.h"

#include "../common/rows.h"

namespace kernels {
namespace {

constexpr int64_t kAddThreads = 256;

template <class In, class Out, class S>
__global__ void __launch_bounds__(S::kBlock)
    norm_forward(const NormForward args) {
  KERNELS_SHARED(float, shared, [kMaxWarps]);
  const int lane = threadIdx.x % S::kThreads;
  const int rows_per_block = blockDim.x / S::kThreads;
  const int64_t packs = args.width / kPack;
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * rows_per_block + threadIdx.x / S::kThreads; row < args.rows;
       row += static_cast<int64_t>(gridDim.x) * rows_per_block) {
    float z[S::kPacks][kPack];
    float total = 0.0f;
#pragma unroll
    for (int j = 0; j < S::kPacks; ++j) {
      const int64_t pack = lane + j * S::kThreads;
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
        for (int i = 0; i < kPack; ++i) values[i] = to_float(from_float<In>(values[i]));  // as backward sees it
      }
#pragma unroll
      for (int i = 0; i < kPack; ++i) total += values[i];
    }
    const float mean = args.mean == nullptr ? 0.0f : row_sum<S::kThreads>(total, shared) / args.width;
    float squares = 0.0f;
#pragma unroll
    for (int j = 0; j < S::kPacks; ++j) {
      if (lane + j * S::kThreads >= packs) continue;
#pragma unroll
      for (int i = 0; i < kPack; ++i) squares += (z[j][i] - mean) * (z[j][i] - mean);
    }
    const float rstd = rsqrtf(row_sum<S::kThreads>(squares, shared) / args.width + args.eps);
    if (lane == 0) {
      if (args.mean != nullptr) args.mean[row] = mean;
      args.rstd[row] = rstd;
    }
#pragma unroll
    for (int j = 0; j < S::kPacks; ++j) {
      const int64_t pack = lane + j * S::kThreads;
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

template <class S>
using BiasSums = float[S::kPacks][kPack];

template <class In, class Out, class S>
__device__ __forceinline__ void backward_row(const NormBackward& args, int64_t row, int lane, float* shared,
                                             ParameterSums<S>& sums, BiasSums<S>& bias) {
  const int64_t first = row * (args.width / kPack);
  const bool centred = args.mean != nullptr;
  const NormRow norm{args.weight, args.parameter, args.width, centred, centred ? args.mean[row] : 0.0f, args.rstd[row]};
  const auto read = [&](int64_t pack, float (&dy)[kPack], float (&z)[kPack]) {
    load(static_cast<const Out*>(args.dy), first + pack, dy);
    load(static_cast<const In*>(args.z), first + pack, z);
  };
  const auto write = [&](int j, int64_t pack, float (&gradient)[kPack]) {
    if (args.dz != nullptr) {
      float dz[kPack];
      load(static_cast<const In*>(args.dz), first + pack, dz);
#pragma unroll
      for (int i = 0; i < kPack; ++i) gradient[i] += dz[i];
    }
    if (args.dresidual != nullptr) store(static_cast<In*>(args.dresidual), first + pack, gradient);
    if (args.dropout.threshold != 0) drop(gradient, args.dropout, row, pack);
    store(static_cast<In*>(args.dx), first + pack, gradient);
    if (args.dbias == nullptr) return;
#pragma unroll
    for (int i = 0; i < kPack; ++i) bias[j][i] += gradient[i];
  };
  norm_gradient<S>(norm, lane, shared, sums, read, write);
}

template <class In, class Out, class S>
__global__ void __launch_bounds__(S::kBlock)
    norm_backward(const NormBackward args) {
  KERNELS_SHARED(float, shared, [kMaxWarps]);
  KERNELS_SHARED(float, columns, [S::kThreads == kWarp ? kNarrowWidth : 1]);
  const int lane = threadIdx.x % S::kThreads;
  const int rows_per_block = blockDim.x / S::kThreads;
  ParameterSums<S> sums;
  BiasSums<S> bias = {};
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * rows_per_block + threadIdx.x / S::kThreads; row < args.rows;
       row += static_cast<int64_t>(gridDim.x) * rows_per_block) {
    backward_row<In, Out, S>(args, row, lane, shared, sums, bias);
  }
  const int64_t packs = args.width / kPack;
  float* out = args.partial + static_cast<int64_t>(blockIdx.x) * 3 * args.width;
  write_sums<S>(out, packs, lane, sums.weight, columns);
  if (args.dshift != nullptr) write_sums<S>(out + args.width, packs, lane, sums.shift, columns);
  if (args.dbias != nullptr) write_sums<S>(out + 2 * args.width, packs, lane, bias, columns);
}

__global__ void __launch_bounds__(kReduceThreads) norm_reduce(const NormBackward args) {
  float* const out = blockIdx.y == 0 ? args.dweight : blockIdx.y == 1 ? args.dshift : args.dbias;
  reduce_blocks(args.partial, args.blocks, args.width, out);
}

// Of numbers that are not negative: a division of 64 bits takes several times the instructions of one of 32.
__device__ __forceinline__ int64_t quotient(int64_t number, int64_t by) {
  if ((number | by) >> 32 == 0) return static_cast<uint32_t>(number) / static_cast<uint32_t>(by);
  return number / by;
}

template <class T>
__global__ void __launch_bounds__(kAddThreads) dropout_add(const DropoutAdd args) {
  const int64_t row_packs = args.width / kPack, packs = args.rows * row_packs;
  for (int64_t at = static_cast<int64_t>(blockIdx.x) * kAddThreads + threadIdx.x; at < packs;
       at += static_cast<int64_t>(gridDim.x) * kAddThreads) {
    float values[kPack], residual[kPack];
    load(static_cast<const T*>(args.x), at, values);
    if (args.dropout.threshold != 0) {
      const int64_t row = quotient(at, row_packs);
      drop(values, args.dropout, row, at - row * row_packs);
    }
    if (args.residual != nullptr) {
      load(static_cast<const T*>(args.residual), at, residual);
#pragma unroll
      for (int i = 0; i < kPack; ++i) values[i] += residual[i];
    }
    store(static_cast<T*>(args.out), at, values);
  }
}

template <class Function>
int32_t with_types(Type input, Type output, Function function) {
  return with_type(input, [&](auto in) { return with_type(output, [&](auto out) { return function(in, out); }); });
}

}  // namespace

KERNELS_EXPORT int32_t kernels_norm_forward(const NormForward* args, int64_t blocks, void* stream) {
  if (args->rows == 0) return kOk;
  const int64_t needed = (args->rows + rows_per_block(args->width) - 1) / rows_per_block(args->width);
  const dim3 grid(static_cast<unsigned>(needed < blocks ? needed : blocks));
  return with_types(args->input, args->output, [&](auto in, auto out) -> int32_t {
    using In = decltype(in);
    using Out = decltype(out);
    return with_shape(args->width, [&](auto shape) -> int32_t {
      using S = decltype(shape);
      KERNELS_LAUNCH((norm_forward<In, Out, S>), grid, dim3(S::kBlock), 0, stream, *args);
      return KERNELS_LAUNCH_STATUS();
    });
  });
}

KERNELS_EXPORT int32_t kernels_norm_backward(const NormBackward* args, void* stream) {
  const dim3 grid(static_cast<unsigned>(args->blocks));
  return with_types(args->input, args->output, [&](auto in, auto out) -> int32_t {
    using In = decltype(in);
    using Out = decltype(out);
    return with_shape(args->width, [&](auto shape) -> int32_t {
      using S = decltype(shape);
      KERNELS_LAUNCH((norm_backward<In, Out, S>), grid, dim3(S::kBlock), 0, stream, *args);
      KERNELS_LAUNCH(norm_reduce, reduce_grid(args->width, 3), dim3(kReduceThreads), 0, stream, *args);
      return KERNELS_LAUNCH_STATUS();
    });
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
