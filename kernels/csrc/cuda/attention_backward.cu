// Gradients of packed attention on tensor cores (Dao 2023, FlashAttention-2, arXiv:2307.08691), without atomics.
//
// Blocks of four warps compute scores again, a warp those of 16 rows, and multiply what they make of them straight from
// registers: a warp of keys has s^T = k q^T and so p^T and ds^T, on the left of dv = p^T dout and dk = ds^T q.
//   sequences_whole: a block has a sequence and a head of keys, takes its keys tile by tile, and makes dq = ds k as
//     well, from ds in shared memory. Five products.
//   keys_alone and queries_alone: a block has a tile of keys, or of queries, and loops over the other side. Seven
//     products, but as many blocks as there are tiles: for long sequences, and where there is a bias.
// The gradient of the bias is summed along diagonals by warp, by block and by a last kernel, each in a fixed order.
#include "../common/attention_keys.h"

namespace kernels {
namespace {

constexpr int kReduceThreads = 256;

// delta, by four threads for a head of a token; where a token is filler, its gradients, 0.
template <class S>
__global__ void __launch_bounds__(kThreads) attention_delta(const AttentionBackward args) {
  using T = typename S::T;
  const Attention& in = args.in;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * (kThreads / 4) + threadIdx.x / 4;
  const int64_t token = min(row / in.heads, in.tokens - 1);
  const bool there = row < in.tokens * in.heads;
  const int head = static_cast<int>(row % in.heads), group = static_cast<int>(in.heads / in.kv_heads);
  float sum = 0.0f;
  if (there && token >= start_of(in, static_cast<int>(in.sequences))) {
    const float zeros[kPack] = {};
    const int kv_head = static_cast<int>(in.heads) + head / group;
    for (int i = threadIdx.x % 4; i < S::kSize / kPack; i += 4) {
      store(gradient_of<S>(args, token, head), i, zeros);
      if (head % group != 0) continue;
      store(gradient_of<S>(args, token, kv_head), i, zeros);
      store(gradient_of<S>(args, token, kv_head + static_cast<int>(in.kv_heads)), i, zeros);
    }
  } else if (there) {
#pragma unroll
    for (int i = 0; i < S::kSize / kPack / 4; ++i) {
      float out[kPack], dout[kPack];
      const int64_t at = row * (S::kSize / kPack) + 4 * i + threadIdx.x % 4;
      load(static_cast<const T*>(args.out), at, out);
      load(static_cast<const T*>(args.dout), at, dout);
#pragma unroll
      for (int e = 0; e < kPack; ++e) sum += out[e] * dout[e];
    }
  }
  sum = quad_sum(sum);
  if (threadIdx.x % 4 == 0 && there) args.delta[head * in.tokens + token] = sum;
}

__global__ void __launch_bounds__(kReduceThreads) attention_bias_reduce(const AttentionBackward args) {
  const int64_t numbers = args.in.heads * (2 * args.in.longest - 1);
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kReduceThreads + threadIdx.x;
  if (at >= numbers) return;
  float sum = 0.0f;
  for (int64_t block = 0; block < args.blocks; ++block) sum += args.partial[block * numbers + at];
  args.dbias[at] = sum;
}

template <class S>
__global__ void KERNELS_REGISTERS(kThreads, S::kRegisters) sequences_whole(const AttentionBackward args) {
  KERNELS_DYNAMIC_SHARED(memory);
  const Attention& in = args.in;
  const int sequence = static_cast<int>(blockIdx.x), kv_head = static_cast<int>(blockIdx.y);
  const int heads = static_cast<int>(in.heads), kv_heads = static_cast<int>(in.kv_heads), group = heads / kv_heads;
  const Tile tile = find_sequence(in, sequence);
  if (!tile.fits) {
    for (int i = 0; i < group; ++i) refuse_rows<S>(args, tile.start, 0, tile.length, kv_head * group + i);
    for (int i = 0; i < 2; ++i) refuse_rows<S>(args, tile.start, 0, tile.length, heads + i * kv_heads + kv_head);
    return;
  }
  const View view(in, tile);
  for (int first = 0; first < view.length; first += kTile) {
    tile_of_keys<S, true, false>(args, view, first, kv_head, *reinterpret_cast<WholeShared<S>*>(memory));
  }
}

template <class S, bool kBias>
__global__ void KERNELS_REGISTERS(kThreads, S::kRegisters) keys_alone(const AttentionBackward args, const int tiles) {
  KERNELS_DYNAMIC_SHARED(memory);
  const Attention& in = args.in;
  if constexpr (kBias) {
    const int numbers = static_cast<int>(in.heads / in.kv_heads * (2 * in.longest - 1));
    float* const partial = args.partial + (blockIdx.x * in.kv_heads + blockIdx.y) * numbers;
    float begin = 0.0f;  // NaN where a sequence is refused: its part of the sums is not known
    for (int number = blockIdx.x; number < tiles && args.dbias != nullptr; number += gridDim.x) {
      if (!find_tile(in, number, kTile).fits) begin = NAN;
    }
    for (int i = threadIdx.x; i < numbers && args.dbias != nullptr; i += kThreads) partial[i] = begin;
  }
  for (int number = blockIdx.x; number < tiles; number += gridDim.x) {
    const Tile tile = find_tile(in, number, kTile);
    if (tile.sequence == in.sequences || tile.empty()) continue;
    if (!tile.fits) {
      const int end = min(tile.length, tile.first + kTile), head = static_cast<int>(in.heads + blockIdx.y);
      refuse_rows<S>(args, tile.start, tile.first, end, head);
      refuse_rows<S>(args, tile.start, tile.first, end, head + static_cast<int>(in.kv_heads));
      continue;
    }
    using Shared = SharedOfKeys<S, false, kBias>;
    tile_of_keys<S, false, kBias>(args, View(in, tile), tile.first, blockIdx.y, *reinterpret_cast<Shared*>(memory));
    if (!kBias) return;  // there are as many blocks as tiles
  }
}

// dq of a warp's queries.
template <class S, bool kBias>
struct QueryGradients {
  using T = typename S::T;
  const Scores<kBias> scores;
  const int first;
  LeftRows<S> q, dout;
  float2 rows[2];  // lse / ln 2 and delta of this thread's queries
  float dq[S::kSize / 8][4] = {};

  __device__ QueryGradients(const AttentionBackward& args, const View& view, int head, int first_query,
                            const T* q_tile, const T* dout_tile)
      : scores{args.in, view, head}, first(first_query), q(q_tile), dout(dout_tile) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int query = first + lane() / 4 + 8 * half;
      const int64_t at = head * args.in.tokens + view.start + query;
      rows[half] = query < view.length ? float2{args.lse[at] * kLog2E, args.delta[at]} : float2{INFINITY, 0.0f};
    }
  }

  __device__ __forceinline__ void hold() { q.hold(), dout.hold(); }

  // Adds what 32 keys from `key` on give, whose rows are at `k` and `v`.
  __device__ __forceinline__ void add(const T* k, const T* v, int key) {
    const Attention& in = scores.in;
    if (scores.view.none(first, key) && scores.view.none(first, key + 16)) return;
    uint32_t kept[2] = {};
    if (in.dropout.threshold != 0) {
      const int64_t row = (scores.view.start + first + lane() / 4) * in.heads + scores.head;
      const uint64_t seed = *in.dropout.seed;
      kept[0] = kept_of_quad(in.dropout, seed, row, key / kDraws);
      kept[1] = kept_of_quad(in.dropout, seed, row + 8 * in.heads, key / kDraws);
    }
#pragma unroll
    for (int j = 0; j < 32; j += 16) {
      if (scores.view.none(first, key + j)) continue;
      float p[2][4], ds[2][4];
      q.times(k + j * S::kStride, p);
      dout.times(v + j * S::kStride, ds);
      const auto place = [](int n, int e) { return int2{lane() / 4 + e / 2 * 8, 8 * n + lane() % 4 * 2 + e % 2}; };
      const auto row = [&](int query) { return rows[query / 8]; };
      scores.differentiate(first, key + j, p, ds, place, row, [&] {
        uint32_t of_products = 0;
#pragma unroll
        for (int i = 0; i < 8; ++i) of_products |= (kept[i / 2 % 2] >> (j + place(i / 4, i % 4).y) & 1u) << i;
        return of_products;
      });
      uint32_t a[4];
      as_left<T>(ds, a);
      add_product<S>(dq, a, k + j * S::kStride);
    }
  }
};

template <class S>
struct alignas(16) QueriesShared {
  typename S::T q[kTile * S::kStride], dout[kTile * S::kStride];
  typename S::T k[2][S::kRows * S::kStride], v[2][S::kRows * S::kStride];  // of a step and the next
};

template <class S, bool kBias>
__global__ void KERNELS_REGISTERS(kThreads, S::kRegisters) queries_alone(const AttentionBackward args) {
  KERNELS_DYNAMIC_SHARED(memory);
  using T = typename S::T;
  QueriesShared<S>& shared = *reinterpret_cast<QueriesShared<S>*>(memory);
  const Attention& in = args.in;
  const Tile tile = find_tile(in, gridDim.x - 1 - blockIdx.x, kTile);  // the last ones see most
  if (tile.sequence == in.sequences || tile.empty()) return;
  const View view(in, tile);
  const int head = static_cast<int>(blockIdx.y), end = min(tile.first + kTile, view.length);
  if (!tile.fits) return refuse_rows<S>(args, view.start, tile.first, end, head);
  copy_rows<T, S::kSize, kTile, kThreads>(shared.q, query_of<T, S::kSize>(in, view.start, head),
                                          stride_of<S::kSize>(in), tile.first, view.length);
  copy_rows<T, S::kSize, kTile, kThreads>(shared.dout, dout_of<S>(args, view.start, head),
                                          static_cast<int>(in.heads) * S::kSize, tile.first, view.length);
  const auto copy_keys = [&](int n) {
    const T* const k = key_of<T, S::kSize>(in, view.start, head);
    copy_rows<T, S::kSize, S::kRows, kThreads>(shared.k[n % 2], k, stride_of<S::kSize>(in), n * S::kRows, view.length);
    copy_rows<T, S::kSize, S::kRows, kThreads>(shared.v[n % 2], k + values_behind<S::kSize>(in),
                                               stride_of<S::kSize>(in), n * S::kRows, view.length);
    end_copies();
  };
  copy_keys(0);
  QueryGradients<S, kBias> sums(args, view, head, tile.first + 16 * warp(), shared.q, shared.dout);
  const int steps = (view.end_of_keys(end) + S::kRows - 1) / S::kRows;
  for (int n = 0; n < steps; ++n) {
    wait_for_copies<0>();
    __syncthreads();
    if (n == 0) sums.hold();
    if (n + 1 < steps) copy_keys(n + 1);
    for (int offset = 0; offset < S::kRows; offset += kWarp) {
      sums.add(shared.k[n % 2] + offset * S::kStride, shared.v[n % 2] + offset * S::kStride, n * S::kRows + offset);
    }
  }
  write_rows<S>(sums.dq, args, view, head, tile.first + 16 * warp(), in.scale);
}

// Calls the function with the shape for heads of 16-bit numbers.
template <class Function>
int32_t with_shape(const Attention& in, Function function) {
  return with_type(in.type, [&](auto zero) -> int32_t {
    using T = decltype(zero);
    if constexpr (sizeof(T) == 2) {
      switch (in.size) {
        case 32: return function(Shape<T, 32>{});
        case 64: return function(Shape<T, 64>{});
        case 96: return function(Shape<T, 96>{});
        case 128: return function(Shape<T, 128>{});
      }
    }
    return kUnsupported;
  });
}

template <class S>
int32_t launch_whole(const AttentionBackward& args, void* stream) {
  constexpr int kBytes = sizeof(WholeShared<S>);
  static_assert(kBytes <= kSharedBytes);
  const dim3 grid(static_cast<unsigned>(args.in.sequences), static_cast<unsigned>(args.in.kv_heads));
  if (const int32_t status = allow_shared<sequences_whole<S>, kBytes>(); status != kOk) return status;
  KERNELS_LAUNCH(sequences_whole<S>, grid, dim3(kThreads), kBytes, stream, args);
  return KERNELS_LAUNCH_STATUS();
}

template <class S, bool kBias>
int32_t launch_alone(const AttentionBackward& args, void* stream) {
  constexpr int kKeysBytes = sizeof(SharedOfKeys<S, false, kBias>), kQueriesBytes = sizeof(QueriesShared<S>);
  static_assert(kKeysBytes <= kSharedBytes && kQueriesBytes <= kSharedBytes);
  const int64_t tiles = tiles_of(args.in, kTile);
  const bool sums = kBias && args.dbias != nullptr;
  const dim3 keys(static_cast<unsigned>(sums ? args.blocks : tiles), static_cast<unsigned>(args.in.kv_heads));
  const dim3 queries(static_cast<unsigned>(tiles), static_cast<unsigned>(args.in.heads));
  if (const int32_t status = allow_shared<keys_alone<S, kBias>, kKeysBytes>(); status != kOk) return status;
  if (const int32_t status = allow_shared<queries_alone<S, kBias>, kQueriesBytes>(); status != kOk) return status;
  KERNELS_LAUNCH((keys_alone<S, kBias>), keys, dim3(kThreads), kKeysBytes, stream, args,
                 static_cast<int>(tiles));
  KERNELS_LAUNCH((queries_alone<S, kBias>), queries, dim3(kThreads), kQueriesBytes, stream, args);
  if (sums) {
    const int64_t numbers = args.in.heads * (2 * args.in.longest - 1);
    const dim3 grid(static_cast<unsigned>((numbers + kReduceThreads - 1) / kReduceThreads));
    KERNELS_LAUNCH(attention_bias_reduce, grid, dim3(kReduceThreads), 0, stream, args);
  }
  return KERNELS_LAUNCH_STATUS();
}

}  // namespace

KERNELS_EXPORT int32_t kernels_attention_backward(const AttentionBackward* args, void* stream) {
  const Attention& in = args->in;
  return with_shape(in, [&](auto shape) -> int32_t {
    using S = decltype(shape);
    if (in.tokens > 0) {
      const int64_t rows = in.tokens * in.heads, each = kThreads / 4;
      const dim3 grid(static_cast<unsigned>((rows + each - 1) / each));
      KERNELS_LAUNCH(attention_delta<S>, grid, dim3(kThreads), 0, stream, *args);
    }
    if (in.bias != nullptr) return launch_alone<S, true>(*args, stream);
    if (in.sequences == 0 || in.tokens == 0) return KERNELS_LAUNCH_STATUS();
    if (in.longest <= kTile || (wants_dq(in) && args->dq != nullptr)) return launch_whole<S>(*args, stream);
    return launch_alone<S, false>(*args, stream);
  });
}

}  // namespace kernels
