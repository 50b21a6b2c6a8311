// The gradients of a tile of keys, and what else is made of its scores: see ../cuda/attention_backward.cu.
#pragma once

#include "attention_gradient.h"

namespace kernels {
namespace {

// What a block of keys has in shared memory.
template <class S>
struct alignas(16) KeysShared {
  typename S::T k[kTile * S::kStride], v[kTile * S::kStride];
  typename S::T q[2][S::kRows * S::kStride], dout[2][S::kRows * S::kStride];  // of a step and the next
  float rows[2][2][S::kRows];                                                 // lse / ln 2 and delta of the queries
};

template <class S>
struct WholeShared : KeysShared<S> {
  typename S::T ds[kTile * S::kScoreStride];  // transposed
};

template <class S>
struct BiasShared : KeysShared<S> {
  float square[kWarps][16][17];            // ds of a warp, transposed
  float diagonals[kWarps][S::kRows + 16];  // sums of ds by 16 warp + j - i + kRows - 1
};

// What a block of keys does in one go: a tile of queries of one of the heads that see its keys.
struct Step {
  int head, first;

  __device__ Step next(int begin, int length, int rows) const {
    return first + rows < length ? Step{head, first + rows} : Step{head + 1, begin};
  }
};

// Begins to copy the queries of a step, and returns what this thread is to put into `rows`.
template <class S>
__device__ __forceinline__ float copy_step(const AttentionBackward& args, const View& view, const Step& step,
                                           KeysShared<S>& shared, int stage) {
  using T = typename S::T;
  const Attention& in = args.in;
  copy_rows<T, S::kSize, S::kRows, kThreads>(shared.q[stage], query_of<T, S::kSize>(in, view.start, step.head),
                                             stride_of<S::kSize>(in), step.first, view.length);
  copy_rows<T, S::kSize, S::kRows, kThreads>(shared.dout[stage], dout_of<S>(args, view.start, step.head),
                                             static_cast<int>(in.heads) * S::kSize, step.first, view.length);
  end_copies();
  const int row = step.first + threadIdx.x % S::kRows;
  const bool first = threadIdx.x < S::kRows;
  if (row >= view.length) return first ? INFINITY : 0.0f;  // p = exp(-inf)
  return (first ? args.lse : args.delta)[step.head * in.tokens + view.start + row] * (first ? kLog2E : 1.0f);
}

template <class S>
__device__ __forceinline__ void put_row(KeysShared<S>& shared, int stage, float value) {
  if (threadIdx.x < 2 * S::kRows) (&shared.rows[stage][0][0])[threadIdx.x] = value;
}

// What dropout leaves of 16 queries, the first of them row token * H + head, and 16 keys from 8 `group` on, for this
// thread's part of s^T: bit 4 n + i for number i of product n. A thread draws for one of the queries and eight keys.
__device__ __forceinline__ uint32_t kept_of_square(const Attention& in, int64_t row, uint32_t group) {
  const int g = lane() / 4, t = lane() % 4;
  const Draws draws = philox(*in.dropout.seed, in.dropout.site, row + lane() % 16 * in.heads, group + lane() / 16);
  uint32_t drawn = 0, kept = 0;
#pragma unroll
  for (int i = 0; i < kDraws; ++i) drawn |= (draws.at(i) >= in.dropout.threshold ? 1u : 0u) << i;
  drawn <<= lane() / 16 * kDraws;
  drawn |= __shfl_xor_sync(0xffffffffu, drawn, 16);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint32_t of_query = __shfl_sync(0xffffffffu, drawn, 2 * t + i % 2 + i / 2 * 8) >> g;
    kept |= ((of_query & 1u) | (of_query >> 8 & 1u) << 2) << (i % 2 + i / 2 * 4);
  }
  return kept;
}

// Adds a warp's ds^T to the sums of its diagonals, the first of which is that of its key 0 and the step's last query.
template <class S>
__device__ __forceinline__ void add_diagonals(BiasShared<S>& shared, const float (&ds)[2][4], int query) {
  float(&square)[16][17] = shared.square[warp()];
  __syncwarp();  // `square` has been read
#pragma unroll
  for (int n = 0; n < 2; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) square[lane() / 4 + e / 2 * 8][8 * n + lane() % 4 * 2 + e % 2] = ds[n][e];
  }
  __syncwarp();
  const int distance = lane() - 15;  // of key and query
  float sum = 0.0f;
  for (int i = max(0, -distance); i < min(16, 16 - distance); ++i) sum += square[i + distance][i];
  if (distance < 16) shared.diagonals[warp()][distance - query + S::kRows - 1] += sum;
}

// Adds the diagonals of a step to those of the block, from column `first` on.
template <class S>
__device__ __forceinline__ void add_to_partial(const AttentionBackward& args, const BiasShared<S>& shared, int64_t head,
                                               int64_t first) {
  if (args.dbias == nullptr) return;
  const int64_t columns = 2 * args.in.longest - 1;
  float* const partial = args.partial + (blockIdx.x * args.in.heads + head) * columns;
  for (int i = threadIdx.x; i < kTile + S::kRows; i += kThreads) {
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      if (i >= 16 * w && i < 16 * w + S::kRows + 16) sum += shared.diagonals[w][i - 16 * w];
    }
    if (first + i >= 0 && first + i < columns) partial[first + i] += sum;
  }
}

// dq = ds k of a step: a warp has half of the rows and of the columns. Over the tiles of keys it is summed in fp32.
template <class S>
__device__ __forceinline__ void add_queries(const AttentionBackward& args, const View& view, const Step& step, int tile,
                                            const WholeShared<S>& shared) {
  constexpr int kParts = S::kRows / 32, kColumns = S::kSize / 2;
  using T = typename S::T;
  const Attention& in = args.in;
  const int first = warp() / 2 * (S::kRows / 2), column = warp() % 2 * kColumns;
  const bool last = tile + kTile >= view.length || view.first_query(tile + kTile) >= step.first + S::kRows;
  const int row = step.first + first + lane() / 4, at = column + lane() % 4 * 2;
  float* const sums = args.dq + (step.head * in.tokens + view.start + row) * S::kSize + at;
  T* const out = gradient_of<S>(args, view.start + row, step.head) + at;
  float dq[kParts][kColumns / 8][4] = {};
  const auto each = [&](auto function) {
#pragma unroll
    for (int m = 0; m < 2 * kParts; ++m) {
      if (row + 8 * m >= view.length) return;
#pragma unroll
      for (int n = 0; n < kColumns / 8; ++n) function(m, n, dq[m / 2][n][m % 2 * 2], dq[m / 2][n][m % 2 * 2 + 1]);
    }
  };
  if (tile > 0) {
    each([&](int m, int n, float& x, float& y) {
      const float2 before = *reinterpret_cast<const float2*>(sums + 8 * m * S::kSize + 8 * n);
      x = before.x, y = before.y;
    });
  }
#pragma unroll 1
  for (int key = 0; key < min(kTile, view.length - tile); key += 16) {
    uint32_t a[kParts][4], b[4];
#pragma unroll
    for (int m = 0; m < kParts; ++m) {
      load_transposed(a[m], shared.ds + key * S::kScoreStride + first + 16 * m + right(S::kScoreStride));
    }
#pragma unroll
    for (int n = 0; n < kColumns / 16; ++n) {
      load_transposed(b, shared.k + key * S::kStride + column + 16 * n + down(S::kStride));
#pragma unroll
      for (int m = 0; m < kParts; ++m) multiply_pair<T>(dq[m][2 * n], dq[m][2 * n + 1], a[m], b);
    }
  }
  each([&](int m, int n, float x, float y) {
    if (last) {
      T* const to = out + 8 * m * stride_of<S::kSize>(in) + 8 * n;
      *reinterpret_cast<uint32_t*>(to) = pair_of<T>(x * in.scale, y * in.scale);
    } else {
      *reinterpret_cast<float2*>(sums + 8 * m * S::kSize + 8 * n) = float2{x, y};
    }
  });
}

// Where a thread's part of 16 x 16 numbers of ds^T lies, that is on the left of a product.
template <class S>
__device__ __forceinline__ void put_scores(WholeShared<S>& shared, int query, const uint32_t (&a)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int row = 16 * warp() + lane() / 4 + i % 2 * 8, column = query + lane() % 4 * 2 + i / 2 * 8;
    *reinterpret_cast<uint32_t*>(shared.ds + row * S::kScoreStride + column) = a[i];
  }
}

// The gradients of a warp's keys and values.
template <class S>
struct KeyGradients {
  float dk[S::kSize / 8][4] = {}, dv[S::kSize / 8][4] = {};
};

// Adds those by 16 queries of a step, from `offset` on.
template <class S, bool kWhole, bool kBias, class Shared>
__device__ __forceinline__ void add_keys(const AttentionBackward& args, const Scores<kBias>& scores, int query, int key,
                                         int stage, int offset, const LeftRows<S>& k, const LeftRows<S>& v,
                                         Shared& shared, KeyGradients<S>& sums) {
  using T = typename S::T;
  uint32_t a[4] = {};
  if (scores.view.none(query, key)) {
    if constexpr (kWhole) put_scores(shared, offset, a);
    return;
  }
  const T* const q = shared.q[stage] + offset * S::kStride;
  const T* const dout = shared.dout[stage] + offset * S::kStride;
  float p[2][4], ds[2][4];
  k.times(q, p);
  v.times(dout, ds);
  const auto place = [](int n, int e) { return int2{8 * n + lane() % 4 * 2 + e % 2, lane() / 4 + e / 2 * 8}; };
  const auto row = [&](int i) { return float2{shared.rows[stage][0][offset + i], shared.rows[stage][1][offset + i]}; };
  const auto draw = [&] {
    const int64_t first = (scores.view.start + query) * args.in.heads + scores.head;
    return kept_of_square(args.in, first, key / kDraws);
  };
  scores.differentiate(query, key, p, ds, place, row, draw);
  as_left<T>(p, a);
  add_product<S>(sums.dv, a, dout);
  as_left<T>(ds, a);
  add_product<S>(sums.dk, a, q);
  if constexpr (kWhole) put_scores(shared, offset, a);
  if constexpr (kBias) add_diagonals(shared, ds, offset);
}

template <class S, bool kWhole, bool kBias>
using SharedOfKeys =
    std::conditional_t<kWhole, WholeShared<S>, std::conditional_t<kBias, BiasShared<S>, KeysShared<S>>>;

// dk and dv of the tile of keys from `tile` on, and what else depends on its scores.
template <class S, bool kWhole, bool kBias>
__device__ __forceinline__ void tile_of_keys(const AttentionBackward& args, const View& view, int tile, int kv_head,
                                             SharedOfKeys<S, kWhole, kBias>& shared) {
  using T = typename S::T;
  const Attention& in = args.in;
  const int group = static_cast<int>(in.heads / in.kv_heads);
  const int begin = view.first_query(tile) / S::kRows * S::kRows, end_head = (kv_head + 1) * group;
  const int k_head = static_cast<int>(in.heads) + kv_head, v_head = k_head + static_cast<int>(in.kv_heads);
  copy_rows<T, S::kSize, kTile, kThreads>(shared.k, query_of<T, S::kSize>(in, view.start, k_head),
                                          stride_of<S::kSize>(in), tile, view.length);
  copy_rows<T, S::kSize, kTile, kThreads>(shared.v, query_of<T, S::kSize>(in, view.start, v_head),
                                          stride_of<S::kSize>(in), tile, view.length);
  Step step{kv_head * group, begin};
  put_row(shared, 0, copy_step(args, view, step, shared, 0));
  LeftRows<S> k(shared.k), v(shared.v);
  KeyGradients<S> sums;
  const int key = tile + 16 * warp();
  bool first = true;
  for (int stage = 0; step.head < end_head; stage = 1 - stage) {
    wait_for_copies<0>();
    __syncthreads();
    if (first) k.hold(), v.hold();
    first = false;
    const Step next = step.next(begin, view.length, S::kRows);
    const float row = next.head < end_head ? copy_step(args, view, next, shared, 1 - stage) : 0.0f;
    const Scores<kBias> scores{in, view, step.head};
    if constexpr (kBias) {
      for (int i = lane(); i < S::kRows + 16; i += kWarp) shared.diagonals[warp()][i] = 0.0f;
    }
#pragma unroll 1
    for (int offset = 0; offset < S::kRows; offset += 16) {
      add_keys<S, kWhole>(args, scores, step.first + offset, key, stage, offset, k, v, shared, sums);
    }
    put_row(shared, 1 - stage, row);
    if constexpr (kWhole || kBias) {
      __syncthreads();
    }
    if constexpr (kWhole) add_queries(args, view, step, tile, shared);
    if constexpr (kBias) add_to_partial(args, shared, step.head, tile - step.first - S::kRows + in.longest);
    step = next;
  }
  write_rows<S>(sums.dk, args, view, k_head, key, in.scale);
  write_rows<S>(sums.dv, args, view, v_head, key, keep_scale(in.dropout.threshold));
  if constexpr (kWhole) {
    __syncthreads();  // the next tile's keys take the place of these
  }
}

}  // namespace
}  // namespace kernels
