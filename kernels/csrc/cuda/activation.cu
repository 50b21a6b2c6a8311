// Bias and activation in one pass, plain or gated, and their gradients in another.
//
// A thread has eight columns for all rows of its block, so it reads the bias once and sums its gradient in registers;
// the four warps of a block have the same 256 columns and rows in turn. A block's sums are added up in the order of
// warps, those of the blocks of rows in their order by a second kernel: the same bits every time.
#include "../common/activation.h"

#include "../common/portable.h"

namespace kernels {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarp;
constexpr int kTile = kWarp * kPack;  // columns of a block
constexpr int kReduceWarps = 8;
constexpr int kReduceThreads = kReduceWarps * kWarp;

template <Activation kKind>
__device__ __forceinline__ void activate_pack(float (&values)[kPack], float (&derivatives)[kPack]) {
#pragma unroll
  for (int i = 0; i < kPack; ++i) {
    const Activated activated = activate<kKind>(values[i]);
    values[i] = activated.value;
    derivatives[i] = activated.derivative;
  }
}

// From inputs to values and derivatives. All threads take the same branch.
__device__ __forceinline__ void activate_pack(Activation kind, float (&values)[kPack], float (&derivatives)[kPack]) {
  if (kind == Activation::kGelu) {
    activate_pack<Activation::kGelu>(values, derivatives);
  } else if (kind == Activation::kGeluTanh) {
    activate_pack<Activation::kGeluTanh>(values, derivatives);
  } else {
    activate_pack<Activation::kSilu>(values, derivatives);
  }
}

// A pack of the input with its bias.
template <class T>
__device__ __forceinline__ void load_biased(const void* x, int64_t at, const float (&bias)[kPack],
                                            float (&out)[kPack]) {
  load(static_cast<const T*>(x), at, out);
#pragma unroll
  for (int i = 0; i < kPack; ++i) out[i] += bias[i];
}

template <class T, int kParts>
__global__ void __launch_bounds__(kThreads) activation_forward(const ActivationForward args) {
  const int64_t packs = args.width / kPack;
  const int64_t pack = static_cast<int64_t>(blockIdx.x) * kWarp + threadIdx.x % kWarp;
  if (pack >= packs) return;
  float bias[kParts][kPack] = {};
#pragma unroll
  for (int part = 0; part < kParts; ++part) {
    if (args.bias != nullptr) load_parameter(args.bias, args.parameter, part * packs + pack, bias[part]);
  }
  for (int64_t row = static_cast<int64_t>(blockIdx.y) * kWarps + threadIdx.x / kWarp; row < args.rows;
       row += static_cast<int64_t>(gridDim.y) * kWarps) {
    float y[kPack], unused[kPack];
    load_biased<T>(args.x, row * kParts * packs + pack, bias[0], y);
    if constexpr (kParts == 1) {
      activate_pack(args.kind, y, unused);
    } else {
      float other[kPack];
      load_biased<T>(args.x, (row * kParts + 1) * packs + pack, bias[1], other);
      activate_pack(args.kind, y, unused);
#pragma unroll
      for (int i = 0; i < kPack; ++i) y[i] *= other[i];
    }
    store(static_cast<T*>(args.y), row * packs + pack, y);
  }
}

// Writes the gradients of a pack of a row and adds them to the sums.
template <class T, int kParts>
__device__ __forceinline__ void backward_pack(const ActivationBackward& args, int64_t row, int64_t pack,
                                              const float (&bias)[kParts][kPack], float (&sums)[kParts][kPack]) {
  const int64_t packs = args.width / kPack, at = row * kParts * packs + pack;
  float dy[kPack], value[kPack], gradient[kPack];
  load(static_cast<const T*>(args.dy), row * packs + pack, dy);
  load_biased<T>(args.x, at, bias[0], value);
  if constexpr (kParts == 1) {
    activate_pack(args.kind, value, gradient);
  } else {
    float other[kPack];
    load_biased<T>(args.x, at + packs, bias[1], other);
    activate_pack(args.kind, value, gradient);
#pragma unroll
    for (int i = 0; i < kPack; ++i) {
      gradient[i] *= other[i];
      value[i] *= dy[i];
      sums[1][i] += value[i];
    }
    store(static_cast<T*>(args.dx), at + packs, value);
  }
#pragma unroll
  for (int i = 0; i < kPack; ++i) {
    gradient[i] *= dy[i];
    sums[0][i] += gradient[i];
  }
  store(static_cast<T*>(args.dx), at, gradient);
}

template <class T, int kParts>
__global__ void __launch_bounds__(kThreads) activation_backward(const ActivationBackward args) {
  KERNELS_SHARED(Pack<float>, shared, [kWarps][kParts * kWarp]);
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int64_t packs = args.width / kPack, pack = static_cast<int64_t>(blockIdx.x) * kWarp + lane;
  float sums[kParts][kPack] = {};
  if (pack < packs) {
    float bias[kParts][kPack] = {};
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      if (args.bias != nullptr) load_parameter(args.bias, args.parameter, part * packs + pack, bias[part]);
    }
    for (int64_t row = static_cast<int64_t>(blockIdx.y) * kWarps + warp; row < args.rows;
         row += static_cast<int64_t>(gridDim.y) * kWarps) {
      backward_pack<T, kParts>(args, row, pack, bias, sums);
    }
  }
  if (args.partial == nullptr) return;
#pragma unroll
  for (int part = 0; part < kParts; ++part) {
#pragma unroll
    for (int i = 0; i < kPack; ++i) shared[warp][part * kWarp + lane].value[i] = sums[part][i];
  }
  __syncthreads();
  float* out = args.partial + static_cast<int64_t>(blockIdx.y) * kParts * args.width;
  for (int i = threadIdx.x; i < kParts * kTile; i += kThreads) {
    const int64_t column = static_cast<int64_t>(blockIdx.x) * kTile + i % kTile;
    if (column >= args.width) continue;
    float total = 0.0f;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) total += shared[w][i / kPack].value[i % kPack];
    out[i / kTile * args.width + column] = total;
  }
}

// Adds up the blocks' sums of a column: each warp those of every eighth block, then the warps' in their order.
__global__ void __launch_bounds__(kReduceThreads) activation_reduce(const ActivationBackward args, int64_t columns) {
  KERNELS_SHARED(float, shared, [kReduceWarps][kWarp]);
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kWarp + lane;
  float total = 0.0f;
  for (int64_t block = warp; block < args.blocks && column < columns; block += kReduceWarps) {
    total += args.partial[block * columns + column];
  }
  shared[warp][lane] = total;
  __syncthreads();
  if (warp != 0 || column >= columns) return;
  for (int w = 1; w < kReduceWarps; ++w) total += shared[w][lane];
  args.dbias[column] = total;
}

dim3 grid_of(int64_t width, int64_t blocks) {
  return dim3(static_cast<unsigned>((width + kTile - 1) / kTile), static_cast<unsigned>(blocks));
}

}  // namespace

KERNELS_EXPORT int32_t kernels_activation_forward(const ActivationForward* args, int64_t blocks, void* stream) {
  if (args->width <= 0 || args->width % kPack != 0) return kUnsupported;
  if (args->rows == 0) return kOk;
  return with_type(args->type, [&](auto zero) -> int32_t {
    using T = decltype(zero);
    if (args->gated) {
      KERNELS_LAUNCH((activation_forward<T, 2>), grid_of(args->width, blocks), dim3(kThreads), 0, stream, *args);
    } else {
      KERNELS_LAUNCH((activation_forward<T, 1>), grid_of(args->width, blocks), dim3(kThreads), 0, stream, *args);
    }
    return KERNELS_LAUNCH_STATUS();
  });
}

KERNELS_EXPORT int32_t kernels_activation_backward(const ActivationBackward* args, void* stream) {
  if (args->width <= 0 || args->width % kPack != 0) return kUnsupported;
  return with_type(args->type, [&](auto zero) -> int32_t {
    using T = decltype(zero);
    const dim3 grid = grid_of(args->width, args->blocks);
    if (args->gated) {
      KERNELS_LAUNCH((activation_backward<T, 2>), grid, dim3(kThreads), 0, stream, *args);
    } else {
      KERNELS_LAUNCH((activation_backward<T, 1>), grid, dim3(kThreads), 0, stream, *args);
    }
    if (args->partial != nullptr) {
      const int64_t columns = args->gated ? 2 * args->width : args->width;
      KERNELS_LAUNCH(activation_reduce, dim3(static_cast<unsigned>((columns + kWarp - 1) / kWarp)),
                     dim3(kReduceThreads), 0, stream, *args, columns);
    }
    return KERNELS_LAUNCH_STATUS();
  });
}

}  // namespace kernels
