// Softmax cross-entropy: a block takes a row, reads it once for the loss and once more for the gradient.
//
// The first pass keeps a maximum and a sum that is rescaled when the maximum grows (Milakov and Gimelshein 2018,
// arXiv:1805.02867); the second finds most of a row in the second-level cache.
#include "../common/cross_entropy.h"

#include "../common/portable.h"

namespace kernels {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocksOfProcessor = 4;  // so that the compiler does not spill for more
constexpr int kWarps = kThreads / kWarp;
constexpr float kInfinity = __builtin_inff(), kNaN = __builtin_nanf("");
constexpr float kLog2E = 1.44269504f;

__device__ __forceinline__ float exponential(float x) { return exp2f(x * kLog2E); }

// The maximum of some logits, the sum of exp(x - maximum), and how many of them stand before the label's.
struct Sums {
  float maximum;
  float total;
  int before;
};

// What exponents are measured from; the maximum where it is finite.
__device__ __forceinline__ float shift_of(float maximum) { return maximum == -kInfinity ? 0.0f : maximum; }

__device__ __forceinline__ Sums join(const Sums& a, const Sums& b) {
  Sums sums;
  sums.maximum = fmaxf(a.maximum, b.maximum);
  const float shift = shift_of(sums.maximum);
  sums.total = a.total * exponential(a.maximum - shift) + b.total * exponential(b.maximum - shift);
  sums.before = a.before + b.before;
  return sums;
}

// The sums of all threads of the block; the same bits in each.
__device__ __forceinline__ Sums join_block(Sums sums, Sums* shared) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    Sums other;
    other.maximum = __shfl_xor_sync(0xffffffffu, sums.maximum, offset);
    other.total = __shfl_xor_sync(0xffffffffu, sums.total, offset);
    other.before = __shfl_xor_sync(0xffffffffu, sums.before, offset);
    sums = join(sums, other);
  }
  __syncthreads();  // the sums of the last row have been read
  if (threadIdx.x % kWarp == 0) shared[threadIdx.x / kWarp] = sums;
  __syncthreads();
  sums = shared[0];
#pragma unroll
  for (int i = 1; i < kWarps; ++i) sums = join(sums, shared[i]);
  return sums;
}

template <class T>
__device__ __forceinline__ Sums sums_of(const CrossEntropyForward& args, int64_t row, int64_t label, float own) {
  const int64_t packs = args.width / kPack;
  Sums sums{-kInfinity, 0.0f, 0};
#pragma unroll 2
  for (int64_t pack = threadIdx.x; pack < packs; pack += kThreads) {
    float values[kPack];
    load(static_cast<const T*>(args.logits), row * packs + pack, values);
    float maximum = sums.maximum;
#pragma unroll
    for (int i = 0; i < kPack; ++i) maximum = fmaxf(maximum, values[i]);
    const float shift = shift_of(maximum);
    sums.total *= exponential(sums.maximum - shift);
    sums.maximum = maximum;
#pragma unroll
    for (int i = 0; i < kPack; ++i) sums.total += exponential(values[i] - shift);
    if (args.right == nullptr) continue;
#pragma unroll
    for (int i = 0; i < kPack; ++i) {
      const int64_t column = pack * kPack + i;
      const bool behind = values[i] < own || (values[i] == own && column >= label);
      sums.before += behind ? 0 : 1;
    }
  }
  return sums;
}

// scale * (softmax - onehot) of a row; zeros where it is ignored, NaN where its label is no column.
template <class T>
__device__ __forceinline__ void write_gradient(const void* logits, void* gradient, int64_t row, int64_t packs,
                                               int64_t label, float maximum, float total, float scale) {
  const bool ignored = label == kIgnoredLabel;
  if (!ignored && (label < 0 || label >= packs * kPack)) scale = kNaN;
  const float inverse = 1.0f / total;
#pragma unroll 2
  for (int64_t pack = threadIdx.x; pack < packs; pack += kThreads) {
    float values[kPack];
    load(static_cast<const T*>(logits), row * packs + pack, values);
    const int64_t at = label - pack * kPack;
#pragma unroll
    for (int i = 0; i < kPack; ++i) {
      const float gradient = (exponential(values[i] - maximum) * inverse - (i == at ? 1.0f : 0.0f)) * scale;
      values[i] = ignored ? 0.0f : gradient;
    }
    store(static_cast<T*>(gradient), row * packs + pack, values);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads, kBlocksOfProcessor) cross_entropy_forward(const CrossEntropyForward args) {
  KERNELS_SHARED(Sums, shared, [kWarps]);
  for (int64_t row = blockIdx.x; row < args.rows; row += gridDim.x) {
    const int64_t label = args.labels[row];
    const bool known = label >= 0 && label < args.width;
    const float own = known ? to_float(static_cast<const T*>(args.logits)[row * args.width + label]) : kNaN;
    const Sums sums = join_block(sums_of<T>(args, row, label, own), shared);
    const float maximum = shift_of(sums.maximum);
    if (threadIdx.x == 0) {
      args.losses[row] = label == kIgnoredLabel ? 0.0f : (maximum - own) + logf(sums.total);
      args.maximum[row] = maximum;
      args.total[row] = sums.total;
      if (args.right != nullptr) args.right[row] = known && sums.before == 0 ? 1 : 0;
    }
    if (args.gradient == nullptr) continue;
    write_gradient<T>(args.logits, args.gradient, row, args.width / kPack, label, maximum, sums.total, args.scale);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) cross_entropy_backward(const CrossEntropyBackward args) {
  for (int64_t row = blockIdx.x; row < args.rows; row += gridDim.x) {
    write_gradient<T>(args.logits, args.gradient, row, args.width / kPack, args.labels[row], args.maximum[row],
                      args.total[row], *args.upstream);
  }
}

dim3 grid_of(int64_t rows, int64_t blocks) { return dim3(static_cast<unsigned>(rows < blocks ? rows : blocks)); }

}  // namespace

KERNELS_EXPORT int32_t kernels_cross_entropy_forward(const CrossEntropyForward* args, int64_t blocks, void* stream) {
  if (args->width % kPack != 0) return kUnsupported;
  if (args->rows == 0) return kOk;
  return with_type(args->type, [&](auto zero) -> int32_t {
    KERNELS_LAUNCH(cross_entropy_forward<decltype(zero)>, grid_of(args->rows, blocks), dim3(kThreads), 0, stream, *args);
    return KERNELS_LAUNCH_STATUS();
  });
}

KERNELS_EXPORT int32_t kernels_cross_entropy_backward(const CrossEntropyBackward* args, int64_t blocks, void* stream) {
  if (args->width % kPack != 0) return kUnsupported;
  if (args->rows == 0) return kOk;
  return with_type(args->type, [&](auto zero) -> int32_t {
    KERNELS_LAUNCH(cross_entropy_backward<decltype(zero)>, grid_of(args->rows, blocks), dim3(kThreads), 0, stream, *args);
    return KERNELS_LAUNCH_STATUS();
  });
}

}  // namespace kernels
