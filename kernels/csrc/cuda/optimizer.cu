// Gradient norm, AdamW and LAMB over lists of tensors: a block takes a chunk of one of them.
//
// A thread works on eight elements at a time, with 16-byte loads where they are all of the piece and aligned. Sums are
// fp32 over eight elements and double beyond, written once a chunk and added up by another kernel in a fixed order.
#include "../common/optimizer.h"

#include "../common/portable.h"

namespace kernels {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;

static_assert(kAligned % kPack == 0 && kChunk % kAligned == 0);
static_assert(sizeof(SquaredNorm) <= 4096 && sizeof(AdamWStep) <= 4096);
static_assert(sizeof(LambMoments) <= 4096 && sizeof(LambStep) <= 4096);

// The elements of a block's chunk.
struct Chunk {
  int item;
  int64_t begin, end;

  __device__ __forceinline__ int64_t first_pack() const { return begin / kPack; }
  __device__ __forceinline__ int64_t last_pack() const { return (end + kPack - 1) / kPack; }
  __device__ __forceinline__ bool whole(int64_t pack) const { return pack * kPack >= begin && (pack + 1) * kPack <= end; }
  __device__ __forceinline__ bool holds(int64_t at) const { return at >= begin && at < end; }
};

__device__ __forceinline__ Chunk chunk_of(const List& list) {
  const int number = static_cast<int>(blockIdx.x);
  int low = 0, high = list.items;  // the last item whose first chunk is not beyond
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (list.first_chunk[middle] <= number) {
      low = middle;
    } else {
      high = middle;
    }
  }
  const Listed& item = list.item[low];
  const int64_t from = item.begin / kAligned * kAligned + (number - list.first_chunk[low]) * kChunk;
  const int64_t to = from + kChunk;
  return Chunk{low, from > item.begin ? from : item.begin, to < item.end ? to : item.end};
}

__device__ __forceinline__ bool is_aligned(const void* array) { return reinterpret_cast<uintptr_t>(array) % 16 == 0; }

template <class T>
__device__ __forceinline__ void load_part(const T* array, const Chunk& chunk, int64_t pack, float (&out)[kPack]) {
  if (chunk.whole(pack) && is_aligned(array)) {
    load(array, pack, out);
    return;
  }
#pragma unroll
  for (int i = 0; i < kPack; ++i) {
    const int64_t at = pack * kPack + i;
    out[i] = chunk.holds(at) ? to_float(array[at]) : 0.0f;
  }
}

template <class T>
__device__ __forceinline__ void store_part(T* array, const Chunk& chunk, int64_t pack, const float (&values)[kPack]) {
  if (chunk.whole(pack) && is_aligned(array)) {
    store(array, pack, values);
    return;
  }
#pragma unroll
  for (int i = 0; i < kPack; ++i) {
    const int64_t at = pack * kPack + i;
    if (chunk.holds(at)) array[at] = from_float<T>(values[i]);
  }
}

// Writes the sums of the threads' values, in a fixed order.
template <int kSums>
__device__ __forceinline__ void write_sums(double (&values)[kSums], double* out) {
  KERNELS_SHARED(double, shared, [kSums][kWarps]);
#pragma unroll
  for (int s = 0; s < kSums; ++s) {
#pragma unroll
    for (int offset = kWarp / 2; offset > 0; offset /= 2) values[s] += __shfl_xor_sync(0xffffffffu, values[s], offset);
    if (threadIdx.x % kWarp == 0) shared[s][threadIdx.x / kWarp] = values[s];
  }
  __syncthreads();
  if (threadIdx.x >= kSums) return;
  double total = 0.0;
  for (int warp = 0; warp < kWarps; ++warp) total += shared[threadIdx.x][warp];
  out[threadIdx.x] = total;
}

__device__ __forceinline__ float squares(const float (&values)[kPack]) {
  float total = 0.0f;
#pragma unroll
  for (int i = 0; i < kPack; ++i) total += values[i] * values[i];
  return total;
}

template <class G>
__global__ void __launch_bounds__(kThreads) squared_norm(const SquaredNorm args) {
  const Chunk chunk = chunk_of(args.list);
  const G* gradient = static_cast<const G*>(args.list.item[chunk.item].gradient);
  double total[1] = {0.0};
  for (int64_t pack = chunk.first_pack() + threadIdx.x; pack < chunk.last_pack(); pack += kThreads) {
    float values[kPack];
    load_part(gradient, chunk, pack, values);
    total[0] += squares(values);
  }
  write_sums(total, args.partial + blockIdx.x);
}

// Adds up the chunks of each of the ranges that `first_chunk` ends: a block takes one.
template <int kSums>
__global__ void __launch_bounds__(kThreads) sum_chunks(const List list, const double* partial, double* out) {
  double total[kSums] = {};
  for (int chunk = list.first_chunk[blockIdx.x] + static_cast<int>(threadIdx.x);
       chunk < list.first_chunk[blockIdx.x + 1]; chunk += kThreads) {
#pragma unroll
    for (int s = 0; s < kSums; ++s) total[s] += partial[static_cast<int64_t>(chunk) * kSums + s];
  }
  write_sums(total, out + static_cast<int64_t>(blockIdx.x) * kSums);
}

// Adam's direction of an element.
__device__ __forceinline__ float direction(const Adam& adam, float first, float second) {
  return first * adam.scale1 / (sqrtf(second) * adam.scale2 + adam.eps);
}

// Advances the moments of a pack, and gives them.
template <class G>
__device__ __forceinline__ void advance(const Listed& item, const Adam& adam, float factor, const Chunk& chunk,
                                        int64_t pack, float (&first)[kPack], float (&second)[kPack]) {
  float gradient[kPack];
  load_part(static_cast<const G*>(item.gradient), chunk, pack, gradient);
  load_part(item.first, chunk, pack, first);
  load_part(item.second, chunk, pack, second);
#pragma unroll
  for (int i = 0; i < kPack; ++i) {
    const float scaled = gradient[i] * factor;
    first[i] = adam.beta1 * first[i] + adam.rest1 * scaled;
    second[i] = adam.beta2 * second[i] + adam.rest2 * scaled * scaled;
  }
  store_part(item.first, chunk, pack, first);
  store_part(item.second, chunk, pack, second);
}

template <class G>
__global__ void __launch_bounds__(kThreads) adamw(const AdamWStep args) {
  const Chunk chunk = chunk_of(args.list);
  const Listed& item = args.list.item[chunk.item];
  const float factor = args.adam.factor != nullptr ? *args.adam.factor : 1.0f;
  const float keep = 1.0f - args.adam.rate * args.adam.decay;
  for (int64_t pack = chunk.first_pack() + threadIdx.x; pack < chunk.last_pack(); pack += kThreads) {
    float first[kPack], second[kPack], weight[kPack];
    load_part(item.weight, chunk, pack, weight);
    advance<G>(item, args.adam, factor, chunk, pack, first, second);
#pragma unroll
    for (int i = 0; i < kPack; ++i) {
      weight[i] = keep * weight[i] - args.adam.rate * direction(args.adam, first[i], second[i]);
    }
    store_part(item.weight, chunk, pack, weight);
    if (item.copy == nullptr) continue;
    if (args.copy == Type::kBFloat16) {
      store_part(static_cast<__nv_bfloat16*>(item.copy), chunk, pack, weight);
    } else {
      store_part(static_cast<__half*>(item.copy), chunk, pack, weight);
    }
  }
}

template <class G>
__global__ void __launch_bounds__(kThreads) lamb_moments(const LambMoments args) {
  const Chunk chunk = chunk_of(args.list);
  const Listed& item = args.list.item[chunk.item];
  const float factor = args.adam.factor != nullptr ? *args.adam.factor : 1.0f;
  double total[2] = {};
  for (int64_t pack = chunk.first_pack() + threadIdx.x; pack < chunk.last_pack(); pack += kThreads) {
    float first[kPack], second[kPack], weight[kPack], update[kPack];
    load_part(item.weight, chunk, pack, weight);
    advance<G>(item, args.adam, factor, chunk, pack, first, second);
#pragma unroll
    for (int i = 0; i < kPack; ++i) {
      update[i] = direction(args.adam, first[i], second[i]) + args.adam.decay * weight[i];
    }
    total[0] += squares(weight);
    total[1] += squares(update);
  }
  write_sums(total, args.partial + static_cast<int64_t>(blockIdx.x) * 2);
}

__global__ void __launch_bounds__(kThreads) lamb_step(const LambStep args) {
  const Chunk chunk = chunk_of(args.list);
  const Listed& item = args.list.item[chunk.item];
  const float rate = args.adam.rate * args.ratio[chunk.item];
  for (int64_t pack = chunk.first_pack() + threadIdx.x; pack < chunk.last_pack(); pack += kThreads) {
    float first[kPack], second[kPack], weight[kPack];
    load_part(item.weight, chunk, pack, weight);
    load_part(item.first, chunk, pack, first);
    load_part(item.second, chunk, pack, second);
#pragma unroll
    for (int i = 0; i < kPack; ++i) {
      weight[i] -= rate * (direction(args.adam, first[i], second[i]) + args.adam.decay * weight[i]);
    }
    store_part(item.weight, chunk, pack, weight);
  }
}

dim3 chunks(const List& list) { return dim3(static_cast<unsigned>(list.first_chunk[list.items])); }

bool is_empty(const List& list) { return list.first_chunk[list.items] == 0; }

}  // namespace

KERNELS_EXPORT int32_t kernels_squared_norm(const SquaredNorm* args, void* stream) {
  if (is_empty(args->list)) return kOk;
  return with_type(args->gradient, [&](auto zero) -> int32_t {
    KERNELS_LAUNCH(squared_norm<decltype(zero)>, chunks(args->list), dim3(kThreads), 0, stream, *args);
    return KERNELS_LAUNCH_STATUS();
  });
}

// out[0] = the sum of partial[0] to partial[count - 1].
KERNELS_EXPORT int32_t kernels_sum_chunks(const double* partial, int64_t count, double* out, void* stream) {
  List list{};
  list.items = 1;
  list.first_chunk[1] = static_cast<int32_t>(count);
  KERNELS_LAUNCH(sum_chunks<1>, dim3(1), dim3(kThreads), 0, stream, list, partial, out);
  return KERNELS_LAUNCH_STATUS();
}

KERNELS_EXPORT int32_t kernels_adamw(const AdamWStep* args, void* stream) {
  if (is_empty(args->list)) return kOk;
  return with_type(args->gradient, [&](auto zero) -> int32_t {
    KERNELS_LAUNCH(adamw<decltype(zero)>, chunks(args->list), dim3(kThreads), 0, stream, *args);
    return KERNELS_LAUNCH_STATUS();
  });
}

// out[item] = the two sums of its chunks.
KERNELS_EXPORT int32_t kernels_lamb_moments(const LambMoments* args, double* out, void* stream) {
  const dim3 items(static_cast<unsigned>(args->list.items));
  return with_type(args->gradient, [&](auto zero) -> int32_t {
    if (!is_empty(args->list)) {
      KERNELS_LAUNCH(lamb_moments<decltype(zero)>, chunks(args->list), dim3(kThreads), 0, stream, *args);
    }
    const double* partial = args->partial;
    KERNELS_LAUNCH(sum_chunks<2>, items, dim3(kThreads), 0, stream, args->list, partial, out);
    return KERNELS_LAUNCH_STATUS();
  });
}

KERNELS_EXPORT int32_t kernels_lamb_step(const LambStep* args, void* stream) {
  if (is_empty(args->list)) return kOk;
  KERNELS_LAUNCH(lamb_step, chunks(args->list), dim3(kThreads), 0, stream, *args);
  return KERNELS_LAUNCH_STATUS();
}

}  // namespace kernels
