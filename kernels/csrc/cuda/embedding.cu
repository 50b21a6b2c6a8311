// Embedding sum, LayerNorm and dropout in one pass, their gradients in another, and those of the tables.
//
// The sum is not kept for the backward pass: to read it once more from the tables costs what a read of it would, and
// saves the write. Rows, and the norm's parameter gradients: ../common/rows.h. Gradients of tables are sums of runs of
// equal sorted ids, a warp taking 256 columns of a piece of them (../common/embedding.h): no atomics, the same bits
// every time.
#include "../common/embedding.h"

#include <limits>

#include "../common/rows.h"

namespace kernels {
namespace {

constexpr int64_t kRunThreads = 128;
constexpr int kAhead = 4;   // rows of a run that are on their way at once
constexpr int kShares = 8;  // the same of pieces' sums
constexpr float kNotANumber = std::numeric_limits<float>::quiet_NaN();

// The ids of a row; -1 where one is beyond its table.
struct Ids {
  int64_t of[kTables];

  __device__ __forceinline__ Ids(const EmbeddingTables& from, int64_t row) {
#pragma unroll
    for (int t = 0; t < kTables; ++t) {
      const int64_t id = from.ids[t] == nullptr ? 0 : from.ids[t][row];
      of[t] = id < 0 || id >= from.rows[t] ? -1 : id;
    }
  }
};

// Pack `pack` of a row of z.
template <class T>
__device__ __forceinline__ void sum_of_tables(const EmbeddingTables& from, const Ids& ids, int64_t packs, int64_t pack,
                                              float (&out)[kPack]) {
#pragma unroll
  for (int i = 0; i < kPack; ++i) out[i] = 0.0f;
#pragma unroll
  for (int t = 0; t < kTables; ++t) {
    if (from.table[t] == nullptr) continue;
    float values[kPack];
#pragma unroll
    for (int i = 0; i < kPack; ++i) values[i] = kNotANumber;
    if (ids.of[t] >= 0) load(static_cast<const T*>(from.table[t]), ids.of[t] * packs + pack, values);
#pragma unroll
    for (int i = 0; i < kPack; ++i) out[i] += values[i];
  }
}

template <class T, class S>
__global__ void __launch_bounds__(S::kBlock)
    embedding_forward(const EmbeddingForward args) {
  KERNELS_SHARED(float, shared, [kMaxWarps]);
  const int lane = threadIdx.x % S::kThreads;
  const int rows_per_block = blockDim.x / S::kThreads;
  const int64_t packs = args.width / kPack;
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * rows_per_block + threadIdx.x / S::kThreads;
       row < args.count; row += static_cast<int64_t>(gridDim.x) * rows_per_block) {
    const Ids ids(args.from, row);
    float z[S::kPacks][kPack];
    float total = 0.0f;
#pragma unroll
    for (int j = 0; j < S::kPacks; ++j) {
      const int64_t pack = lane + j * S::kThreads;
      if (pack >= packs) continue;
      sum_of_tables<T>(args.from, ids, packs, pack, z[j]);
#pragma unroll
      for (int i = 0; i < kPack; ++i) total += z[j][i];
    }
    float mean = 0.0f, rstd = 1.0f;
    if (args.weight != nullptr) {
      mean = row_sum<S::kThreads>(total, shared) / args.width;
      float squares = 0.0f;
#pragma unroll
      for (int j = 0; j < S::kPacks; ++j) {
        if (lane + j * S::kThreads >= packs) continue;
#pragma unroll
        for (int i = 0; i < kPack; ++i) squares += (z[j][i] - mean) * (z[j][i] - mean);
      }
      rstd = rsqrtf(row_sum<S::kThreads>(squares, shared) / args.width + args.eps);
      if (lane == 0) {
        args.mean[row] = mean;
        args.rstd[row] = rstd;
      }
    }
#pragma unroll
    for (int j = 0; j < S::kPacks; ++j) {
      const int64_t pack = lane + j * S::kThreads;
      if (pack >= packs) continue;
      if (args.weight != nullptr) {
        float weight[kPack], shift[kPack] = {};
        load_parameter(args.weight, args.parameter, pack, weight);
        if (args.shift != nullptr) load_parameter(args.shift, args.parameter, pack, shift);
#pragma unroll
        for (int i = 0; i < kPack; ++i) z[j][i] = (z[j][i] - mean) * rstd * weight[i] + shift[i];
      }
      if (args.dropout.threshold != 0) drop(z[j], args.dropout, row, pack);
      store(static_cast<T*>(args.y), row * packs + pack, z[j]);
    }
  }
}

template <class T, class S>
__device__ __forceinline__ void backward_row(const EmbeddingBackward& args, int64_t row, int lane, float* shared,
                                             ParameterSums<S>& sums) {
  const int64_t packs = args.width / kPack, first = row * packs;
  const Ids ids(args.from, row);
  const NormRow norm{args.weight, args.parameter, args.width, true, args.mean[row], args.rstd[row]};
  const auto read = [&](int64_t pack, float (&dy)[kPack], float (&z)[kPack]) {
    load(static_cast<const T*>(args.dy), first + pack, dy);
    if (args.dropout.threshold != 0) drop(dy, args.dropout, row, pack);
    sum_of_tables<T>(args.from, ids, packs, pack, z);
  };
  const auto write = [&](int, int64_t pack, float (&gradient)[kPack]) {
    store(static_cast<T*>(args.dz), first + pack, gradient);
  };
  norm_gradient<S>(norm, lane, shared, sums, read, write);
}

template <class T, class S>
__global__ void __launch_bounds__(S::kBlock)
    embedding_backward(const EmbeddingBackward args) {
  KERNELS_SHARED(float, shared, [kMaxWarps]);
  KERNELS_SHARED(float, columns, [S::kThreads == kWarp ? kNarrowWidth : 1]);
  const int lane = threadIdx.x % S::kThreads;
  const int rows_per_block = blockDim.x / S::kThreads;
  ParameterSums<S> sums;
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * rows_per_block + threadIdx.x / S::kThreads;
       row < args.count; row += static_cast<int64_t>(gridDim.x) * rows_per_block) {
    backward_row<T, S>(args, row, lane, shared, sums);
  }
  const int64_t packs = args.width / kPack;
  float* out = args.partial + static_cast<int64_t>(blockIdx.x) * 2 * args.width;
  write_sums<S>(out, packs, lane, sums.weight, columns);
  write_sums<S>(out + args.width, packs, lane, sums.shift, columns);
}

__global__ void __launch_bounds__(kReduceThreads) embedding_reduce(const EmbeddingBackward args) {
  reduce_blocks(args.partial, args.blocks, args.width, blockIdx.y == 0 ? args.dweight : args.dshift);
}

// What a warp has to do with a table: 32 packs of a piece of its ids.
struct Runs {
  const int64_t* ids;
  const int64_t* order;
  void* out;
  int64_t rows, count, packs, pack, piece, begin, end;

  __device__ __forceinline__ explicit Runs(const EmbeddingRuns& args) {
    const int table = blockIdx.y;
    const int64_t tiles = (args.width / kPack + kWarp - 1) / kWarp;
    const int64_t warp = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / kWarp;
    ids = args.ids + table * args.count;
    order = args.order + table * args.count;
    out = table == 0 ? args.out[0] : table == 1 ? args.out[1] : args.out[2];
    rows = table == 0 ? args.rows[0] : table == 1 ? args.rows[1] : args.rows[2];
    count = args.count;
    packs = args.width / kPack;
    pack = warp % tiles * kWarp + threadIdx.x % kWarp;
    piece = warp / tiles;
    begin = piece * args.length;
    end = begin + args.length < count ? begin + args.length : count;
  }

  __device__ __forceinline__ bool is_needed() const { return out != nullptr && begin < count && pack < packs; }
  // Whether the run before `at` goes on there.
  __device__ __forceinline__ bool goes_on(int64_t at) const { return at > 0 && at < count && ids[at - 1] == ids[at]; }
  __device__ __forceinline__ bool takes(int64_t id) const { return id >= 0 && id < rows; }
  // The pack of `partial` with the sum of a piece: of the run that goes on after it, or that began before it.
  __device__ __forceinline__ int64_t share(const EmbeddingRuns& args, int64_t of, bool after) const {
    return ((blockIdx.y * args.pieces + of) * 2 + (after ? 1 : 0)) * packs + pack;
  }
};

template <class T>
__global__ void __launch_bounds__(kRunThreads) sum_pieces(const EmbeddingRuns args) {
  const Runs runs(args);
  if (!runs.is_needed()) return;
  float total[kPack] = {};
  int64_t start = runs.begin;
  for (int64_t first = runs.begin; first < runs.end; first += kAhead) {
    float values[kAhead][kPack];
#pragma unroll
    for (int u = 0; u < kAhead; ++u) {
      if (first + u < runs.end) {
        load(static_cast<const T*>(args.dz), runs.order[first + u] * runs.packs + runs.pack, values[u]);
      }
    }
#pragma unroll
    for (int u = 0; u < kAhead; ++u) {
      const int64_t at = first + u, after = at + 1;
      if (at >= runs.end) continue;
#pragma unroll
      for (int i = 0; i < kPack; ++i) total[i] += values[u][i];
      const bool goes_on = runs.goes_on(after);
      if (goes_on && after < runs.end) continue;
      const int64_t id = runs.ids[at];
      const bool began_before = start == runs.begin && runs.goes_on(start);
      if (began_before || goes_on) {
        store(args.partial, runs.share(args, runs.piece, !began_before), total);
      } else if (runs.takes(id)) {
        store(static_cast<T*>(runs.out), id * runs.packs + runs.pack, total);
      }
      start = after;
#pragma unroll
      for (int i = 0; i < kPack; ++i) total[i] = 0.0f;
    }
  }
}

// Where the run of ids[at] ends.
__device__ __forceinline__ int64_t end_of_run(const int64_t* ids, int64_t at, int64_t count) {
  const int64_t id = ids[at];
  int64_t inside = at, beyond = count;
  while (beyond - inside > 1) {
    const int64_t middle = inside + (beyond - inside) / 2;
    (ids[middle] == id ? inside : beyond) = middle;
  }
  return beyond;
}

// The runs that begin in a piece and go on after it.
template <class T>
__global__ void __launch_bounds__(kRunThreads) join_pieces(const EmbeddingRuns args) {
  const Runs runs(args);
  if (!runs.is_needed() || !runs.goes_on(runs.end)) return;
  const int64_t id = runs.ids[runs.end];
  if (!runs.takes(id) || (runs.ids[runs.begin] == id && runs.goes_on(runs.begin))) return;
  const int64_t last = (end_of_run(runs.ids, runs.end, runs.count) - 1) / args.length;
  float total[kPack];
  load(args.partial, runs.share(args, runs.piece, true), total);
  for (int64_t first = runs.piece + 1; first <= last; first += kShares) {
    float values[kShares][kPack];
#pragma unroll
    for (int u = 0; u < kShares; ++u) {
      if (first + u <= last) load(args.partial, runs.share(args, first + u, false), values[u]);
    }
#pragma unroll
    for (int u = 0; u < kShares; ++u) {
      if (first + u > last) continue;
#pragma unroll
      for (int i = 0; i < kPack; ++i) total[i] += values[u][i];
    }
  }
  store(static_cast<T*>(runs.out), id * runs.packs + runs.pack, total);
}

}  // namespace

KERNELS_EXPORT int32_t kernels_embedding_forward(const EmbeddingForward* args, int64_t blocks, void* stream) {
  if (args->count == 0) return kOk;
  const int64_t needed = (args->count + rows_per_block(args->width) - 1) / rows_per_block(args->width);
  const dim3 grid(static_cast<unsigned>(needed < blocks ? needed : blocks));
  return with_type(args->type, [&](auto zero) -> int32_t {
    using T = decltype(zero);
    return with_shape(args->width, [&](auto shape) -> int32_t {
      using S = decltype(shape);
      KERNELS_LAUNCH((embedding_forward<T, S>), grid, dim3(S::kBlock), 0, stream, *args);
      return KERNELS_LAUNCH_STATUS();
    });
  });
}

KERNELS_EXPORT int32_t kernels_embedding_backward(const EmbeddingBackward* args, void* stream) {
  const dim3 grid(static_cast<unsigned>(args->blocks));
  return with_type(args->type, [&](auto zero) -> int32_t {
    using T = decltype(zero);
    return with_shape(args->width, [&](auto shape) -> int32_t {
      using S = decltype(shape);
      KERNELS_LAUNCH((embedding_backward<T, S>), grid, dim3(S::kBlock), 0, stream, *args);
      KERNELS_LAUNCH(embedding_reduce, reduce_grid(args->width, 2), dim3(kReduceThreads), 0, stream, *args);
      return KERNELS_LAUNCH_STATUS();
    });
  });
}

KERNELS_EXPORT int32_t kernels_embedding_runs(const EmbeddingRuns* args, void* stream) {
  if (args->width % kPack != 0) return kUnsupported;
  const int64_t tiles = (args->width / kPack + kWarp - 1) / kWarp;
  const int64_t blocks = (args->pieces * tiles * kWarp + kRunThreads - 1) / kRunThreads;
  if (blocks == 0) return kOk;
  const dim3 grid(static_cast<unsigned>(blocks), kTables);
  return with_type(args->type, [&](auto zero) -> int32_t {
    KERNELS_LAUNCH(sum_pieces<decltype(zero)>, grid, dim3(kRunThreads), 0, stream, *args);
    KERNELS_LAUNCH(join_pieces<decltype(zero)>, grid, dim3(kRunThreads), 0, stream, *args);
    return KERNELS_LAUNCH_STATUS();
  });
}

}  // namespace kernels
