// What the gradients of attention on a GPU are made of: a warp has 16 rows of a tile, queries or keys, and multiplies
// them with the other side's, 16 at a time.
#pragma once

#include <type_traits>

#include "attention_tiles.h"

namespace kernels {
namespace {

constexpr int kWarps = 4, kThreads = kWarps * kWarp;
constexpr int kTile = static_cast<int>(kKeyTile);  // rows of a block
constexpr float kLog2E = 1.4426950408889634f;
static_assert(kTile == 16 * kWarps);

// What the sizes of heads differ in: rows that are looped over at a time, and whether a warp's rows stay in registers.
template <class Number, int kNumbers>
struct Shape {
  using T = Number;
  static constexpr int kSize = kNumbers, kStride = kRowStride<kSize>;
  static constexpr bool kHeld = kSize <= 64;
  static constexpr int kRows = kHeld ? 64 : 32, kScoreStride = kRows + 8;
  static constexpr int kRegisters = kHeld ? 168 : 224;  // of a thread: three blocks on a multiprocessor, or two
};

// A sequence. Numbers of few bits: what is known of it stays in registers beside the matrices.
struct View {
  int start, length, common;  // so many first keys are seen by all

  __device__ View(const Attention& in, const Tile& tile)
      : start(static_cast<int>(tile.start)), length(tile.length), common(0) {
    if (in.mask == Mask::kFull) common = length;
    if (in.mask == Mask::kPrefix) common = min(in.prefix[tile.sequence], length);
  }
  __device__ bool sees(int i, int j) const { return i < length && j < length && (j <= i || j < common); }
  // Whether all, or none, of the queries [i, i + 16) see the keys [j, j + 16).
  __device__ bool all(int i, int j) const { return max(i, j) + 15 < length && (j + 15 <= i || j + 15 < common); }
  __device__ bool none(int i, int j) const { return max(i, j) >= length || (j > i + 15 && j >= common); }
  // The first query that sees a key from j on, and the end of the keys that queries before `end` see.
  __device__ int first_query(int j) const { return j < common ? 0 : j; }
  __device__ int end_of_keys(int end) const { return min(length, max(end, common)); }
};

__device__ __forceinline__ int lane() { return threadIdx.x % kWarp; }
__device__ __forceinline__ int warp() { return threadIdx.x / kWarp; }

// Where this lane points in rows of `stride` numbers, for a 16 x 16 part: matrices downwards first, or rightwards.
__device__ __forceinline__ int down(int stride) { return lane() % 16 * stride + lane() / 16 * 8; }
__device__ __forceinline__ int right(int stride) {
  return (lane() % 8 + lane() / 16 * 8) * stride + lane() / 8 % 2 * 8;
}

// d, e += a b for the two halves of the columns of b.
template <class T>
__device__ __forceinline__ void multiply_pair(float (&d)[4], float (&e)[4], const uint32_t (&a)[4],
                                              const uint32_t (&b)[4]) {
  const uint32_t first[2] = {b[0], b[1]}, second[2] = {b[2], b[3]};
  multiply_add<T>(d, a, first);
  multiply_add<T>(e, a, second);
}

// The rows of a warp as the left of products.
template <class S>
class LeftRows {
 public:
  __device__ explicit LeftRows(const typename S::T* tile) : from_(tile + 16 * warp() * S::kStride + down(S::kStride)) {}

  // Once they are there.
  __device__ __forceinline__ void hold() {
    if constexpr (S::kHeld) {
#pragma unroll
      for (int k = 0; k < S::kSize / 16; ++k) load_matrices(held_[k], from_ + 16 * k);
    }
  }

  // d = rows times the transposed 16 rows at `other`.
  __device__ __forceinline__ void times(const typename S::T* other, float (&d)[2][4]) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) d[0][i] = d[1][i] = 0.0f;
#pragma unroll(S::kHeld ? S::kSize / 16 : 2)
    for (int k = 0; k < S::kSize / 16; ++k) {
      uint32_t a[4], b[4];
      load_matrices(b, other + right(S::kStride) + 16 * k);
      if constexpr (S::kHeld) {
#pragma unroll
        for (int i = 0; i < 4; ++i) a[i] = held_[k][i];
      } else {
        load_matrices(a, from_ + 16 * k);
      }
      multiply_pair<typename S::T>(d[0], d[1], a, b);
    }
  }

 private:
  const typename S::T* from_;
  uint32_t held_[S::kHeld ? S::kSize / 16 : 1][4];
};

// sums += a times the 16 rows at `rows`.
template <class S>
__device__ __forceinline__ void add_product(float (&sums)[S::kSize / 8][4], const uint32_t (&a)[4],
                                            const typename S::T* rows) {
#pragma unroll
  for (int n = 0; n < S::kSize / 16; ++n) {
    uint32_t b[4];
    load_transposed(b, rows + down(S::kStride) + 16 * n);
    multiply_pair<typename S::T>(sums[2 * n], sums[2 * n + 1], a, b);
  }
}

// Two products of 16 rows by 8 columns as the left of another.
template <class T>
__device__ __forceinline__ void as_left(const float (&d)[2][4], uint32_t (&a)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) a[i] = pair_of<T>(d[i / 2][i % 2 * 2], d[i / 2][i % 2 * 2 + 1]);
}

// Where a head of a token has its gradient: of queries, keys or values, as in qkv.
template <class S>
__device__ __forceinline__ typename S::T* gradient_of(const AttentionBackward& args, int64_t token, int head) {
  return static_cast<typename S::T*>(args.dqkv) + token * stride_of<S::kSize>(args.in) + head * S::kSize;
}

template <class S>
__device__ __forceinline__ const typename S::T* dout_of(const AttentionBackward& args, int64_t token, int head) {
  return static_cast<const typename S::T*>(args.dout) + (token * args.in.heads + head) * S::kSize;
}

// Writes what a warp has of the 16 rows from `row` of the sequence on, times a factor.
template <class S>
__device__ __forceinline__ void write_rows(const float (&sums)[S::kSize / 8][4], const AttentionBackward& args,
                                           const View& view, int head, int row, float factor) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int at = row + lane() / 4 + 8 * half;
    Words* const to = reinterpret_cast<Words*>(gradient_of<S>(args, view.start + at, head)) + lane() % 4;
#pragma unroll
    for (int c = 0; c < S::kSize / 32; ++c) {
      Words words;
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        const float(&pair)[4] = sums[4 * c + w];
        words.word[w] = pair_of<typename S::T>(pair[2 * half] * factor, pair[2 * half + 1] * factor);
      }
      transpose_quad(words.word);
      if (at < view.length) to[4 * c] = words;
    }
  }
}

// A sequence is longer than the caller said: its rows of a head are no numbers.
template <class S>
__device__ __forceinline__ void refuse_rows(const AttentionBackward& args, int64_t start, int first, int end,
                                            int head) {
  for (int row = first + warp(); row < end; row += kWarps) {
    for (int i = lane(); i < S::kSize; i += kWarp) {
      gradient_of<S>(args, start + row, head)[i] = from_float<typename S::T>(NAN);
    }
  }
}

// Calls the function with a constant for a value that all threads of a warp have alike.
template <class Function>
__device__ __forceinline__ void as_constant(bool value, Function function) {
  if (value) {
    function(std::true_type{});
  } else {
    function(std::false_type{});
  }
}

// Scores of a head of queries and their gradient.
template <bool kBias>
struct Scores {
  const Attention& in;
  const View& view;
  const int head;

  // Puts in place of the products q k of 16 x 16 queries and keys from i, j on what dropout leaves of p, less a factor,
  // and in place of dp the gradients ds. place(n, e) gives query and key of the thread's numbers, counted from i and j,
  // row(query) its lse / ln 2 and delta, draw() which numbers dropout leaves: bit 4 n + e.
  template <class Place, class Row, class Draw>
  __device__ __forceinline__ void differentiate(int i, int j, float (&p)[2][4], float (&dp)[2][4], Place place, Row row,
                                                Draw draw) const {
    const float scale = in.scale * kLog2E, keep = keep_scale(in.dropout.threshold);
    const float* const bias = kBias ? in.bias + head * (2 * in.longest - 1) + in.longest - 1 : nullptr;
    const auto apply = [&](auto all, auto drops) {
      constexpr bool kAll = decltype(all)::value, kDrops = decltype(drops)::value;
      uint32_t kept = ~0u;
      if constexpr (kDrops) kept = draw();
#pragma unroll
      for (int n = 0; n < 2; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int query = place(n, e).x, key = place(n, e).y;
          const float2 lse_delta = row(query);
          const bool seen = kAll || view.sees(i + query, j + key);
          float exponent = fmaf(p[n][e], scale, -lse_delta.x);
          if (kBias && seen) exponent = fmaf(bias[j + key - i - query], kLog2E, exponent);
          const float probability = seen ? exp2_approximate(exponent) : 0.0f;
          const bool stays = !kDrops || (kept >> (4 * n + e) & 1u);
          const float factor = !kDrops ? 1.0f : stays ? keep : 0.0f;
          p[n][e] = stays ? probability : 0.0f;
          dp[n][e] = probability * fmaf(dp[n][e], factor, -lse_delta.y);
        }
      }
    };
    as_constant(view.all(i, j), [&](auto all) {
      as_constant(in.dropout.threshold != 0, [&](auto drops) { apply(all, drops); });
    });
  }
};

}  // namespace
}  // namespace kernels
