// Queries in the registers of a warp, which looks at keys and values in shared memory 32 at a time: scores, softmax in
// base 2, weights times values (Dao 2023, arXiv:2307.08691).
#pragma once

#include <cfloat>

#include "attention_tiles.h"

namespace kernels {
namespace {

constexpr int kQueries = 16;  // of a matrix of tensor cores
constexpr int kStep = 32;     // keys that a warp looks at together
constexpr float kLog2e = 1.4426950408889634f, kLn2 = 0.6931471805599453f;
constexpr float kLowest = -FLT_MAX;  // a base that no finite score is below
constexpr float kSlack = 8.0f;       // weights stay below 2^8 of those that the largest score would be 1 of

enum class Extra { kNone, kDropout, kBias };  // kBias: with dropout or without

// A head of a sequence. Numbers of few bits: what is known of it stays in registers beside the matrices.
struct Head {
  int start, length, number;  // its first token in the batch, its tokens, and which head
  int common;                 // so many first keys are seen by all
  float scale;                // times log2(e), positive

  // Query i sees the keys before this one.
  __device__ __forceinline__ int limit(int i) const { return min(length, max(i + 1, common)); }
};

__device__ __forceinline__ Head head_of(const Attention& in, int sequence, int64_t start, int length, int number) {
  const int common = in.mask == Mask::kFull ? length : in.mask == Mask::kPrefix ? in.prefix[sequence] : 0;
  const float scale = in.scale == 0.0f ? 1.0f : fabsf(in.scale) * kLog2e;
  return Head{static_cast<int>(start), length, number, common, scale};
}

// The queries of a warp, and what they have seen. Row r of 0 and 1 of matrix m is that of g + 8 r. Weights are
// exp2(score - base), and `base` the largest score or at most kSlack below it.
template <int kSize, int kMatrices>
struct Rows {
  uint32_t query[kMatrices][kSize / 16][4];
  float out[kMatrices][kSize / 8][4];
  float base[kMatrices][2], sum[kMatrices][2];  // sums of the keys of this thread
  int first;                                    // query

  __device__ __forceinline__ int place(int m, int r) const {
    return first + m * kQueries + r * 8 + static_cast<int>(threadIdx.x) % kWarp / 4;
  }
};

// Loads the queries from `first` on. The sign of the scale goes to them, so that the largest score stays the largest.
template <class T, int kSize, int kMatrices>
__device__ __forceinline__ void begin_rows(Rows<kSize, kMatrices>& rows, const Attention& in, const Head& head,
                                           int first) {
  const int t = threadIdx.x % 4;
  const uint32_t bits = in.scale == 0.0f ? 0u : 0xffffffffu, signs = in.scale < 0.0f ? 0x80008000u : 0u;
  rows.first = first;
#pragma unroll
  for (int m = 0; m < kMatrices; ++m) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int i = rows.place(m, r);
      const T* const query = query_of<T, kSize>(in, head.start + i, head.number);
#pragma unroll
      for (int c = 0; c < kSize / 32; ++c) {
        Words words = {};
        if (i < head.length) words = reinterpret_cast<const Words*>(query)[4 * c + t];
        transpose_quad(words.word);
#pragma unroll
        for (int w = 0; w < 4; ++w) {
          rows.query[m][2 * c + w / 2][r + 2 * (w % 2)] = (words.word[w] & bits) ^ signs;
        }
      }
      rows.base[m][r] = kLowest;
      rows.sum[m][r] = 0.0f;
    }
#pragma unroll
    for (int n = 0; n < kSize / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) rows.out[m][n][i] = 0.0f;
    }
  }
}

template <class T, int kSize, int kMatrices>
__device__ __forceinline__ void write_rows(Rows<kSize, kMatrices>& rows, const AttentionForward& args,
                                           const Head& head) {
  const int t = threadIdx.x % 4;
  const float keep = keep_scale(args.in.dropout.threshold);
#pragma unroll
  for (int m = 0; m < kMatrices; ++m) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int i = rows.place(m, r);
      const float sum = quad_sum(rows.sum[m][r]), factor = keep / sum;
      T* const out = static_cast<T*>(args.out) + ((head.start + i) * args.in.heads + head.number) * kSize;
#pragma unroll
      for (int c = 0; c < kSize / 32; ++c) {
        Words words;
#pragma unroll
        for (int w = 0; w < 4; ++w) {
          const float(&sums)[4] = rows.out[m][4 * c + w];
          words.word[w] = pair_of<T>(sums[2 * r] * factor, sums[2 * r + 1] * factor);
        }
        transpose_quad(words.word);
        if (i < head.length) reinterpret_cast<Words*>(out)[4 * c + t] = words;
      }
      if (i >= head.length || t != 0) continue;
      args.lse[head.number * args.in.tokens + head.start + i] = rows.base[m][r] * kLn2 + logf(sum);
    }
  }
}

template <int kMatrices>
using Scores = float[kMatrices][kStep / 8][4];

// Products of the queries with the keys of a step.
template <class T, int kSize, int kMatrices>
__device__ __forceinline__ void multiply_keys(Scores<kMatrices>& scores, const Rows<kSize, kMatrices>& rows,
                                              const T* keys) {
  const int lane = threadIdx.x % kWarp;
  const T* own = keys + (lane % 8 + lane / 16 * 8) * kRowStride<kSize> + lane / 8 % 2 * 8;
#pragma unroll
  for (int k = 0; k < kSize / 16; ++k) {
#pragma unroll
    for (int n = 0; n < kStep / 8; n += 2) {
      uint32_t loaded[4];
      load_matrices(loaded, own + n * 8 * kRowStride<kSize> + k * 16);
      const uint32_t low[2] = {loaded[0], loaded[1]}, high[2] = {loaded[2], loaded[3]};
#pragma unroll
      for (int m = 0; m < kMatrices; ++m) {
        multiply_add<T>(scores[m][n], rows.query[m][k], low);
        multiply_add<T>(scores[m][n + 1], rows.query[m][k], high);
      }
    }
  }
}

// Adds the products of weights with the values of a step.
template <class T, int kSize, int kMatrices>
__device__ __forceinline__ void multiply_values(Rows<kSize, kMatrices>& rows, const Scores<kMatrices>& weights,
                                                const T* values) {
  const int lane = threadIdx.x % kWarp;
  const T* own = values + lane % 16 * kRowStride<kSize> + lane / 16 * 8;
#pragma unroll
  for (int k = 0; k < kStep / 16; ++k) {
    uint32_t left[kMatrices][4];
#pragma unroll
    for (int m = 0; m < kMatrices; ++m) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float(&pair)[4] = weights[m][2 * k + i / 2];
        left[m][i] = pair_of<T>(pair[2 * (i % 2)], pair[2 * (i % 2) + 1]);
      }
    }
#pragma unroll
    for (int n = 0; n < kSize / 8; n += 2) {
      uint32_t loaded[4];
      load_transposed(loaded, own + k * 16 * kRowStride<kSize> + n * 8);
      const uint32_t low[2] = {loaded[0], loaded[1]}, high[2] = {loaded[2], loaded[3]};
#pragma unroll
      for (int m = 0; m < kMatrices; ++m) {
        multiply_add<T>(rows.out[m][n], left[m], low);
        multiply_add<T>(rows.out[m][n + 1], left[m], high);
      }
    }
  }
}

// Hides what a query does not see, and adds the bias; `first` is the first of the eight keys of this thread. Returns
// what is left to multiply the scores by.
template <Extra kExtra, int kSize, int kMatrices>
__device__ __forceinline__ float finish_scores(Scores<kMatrices>& scores, const Rows<kSize, kMatrices>& rows,
                                               const Attention& in, const Head& head, int first, bool edge) {
  if (kExtra != Extra::kBias && !edge) return head.scale;
#pragma unroll
  for (int m = 0; m < kMatrices; ++m) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int i = min(rows.place(m, r), head.length - 1), left = head.limit(i) - first;
      const float* const bias = in.bias + head.number * (2 * in.longest - 1) + in.longest - 1 + first - i;
#pragma unroll
      for (int key = 0; key < 8; ++key) {
        float& score = scores[m][key / 2][2 * r + key % 2];
        if (key >= left) {
          score = -INFINITY;
        } else if (kExtra == Extra::kBias) {
          score = score * head.scale + bias[key] * kLog2e;
        }
      }
    }
  }
  return kExtra == Extra::kBias ? 1.0f : head.scale;
}

// Moves the bases of all rows of the warp up to their largest scores if one of these is far above.
template <int kSize, int kMatrices>
__device__ __forceinline__ void raise_bases(Rows<kSize, kMatrices>& rows, const Scores<kMatrices>& scores,
                                            float scale) {
  float top[kMatrices][2];
  bool above = false;
#pragma unroll
  for (int m = 0; m < kMatrices; ++m) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float largest = scores[m][0][2 * r];
#pragma unroll
      for (int key = 1; key < 8; ++key) largest = fmaxf(largest, scores[m][key / 2][2 * r + key % 2]);
      top[m][r] = quad_max(largest) * scale;
      above = above || top[m][r] > rows.base[m][r] + kSlack;
    }
  }
  if (!__any_sync(0xffffffffu, above)) return;
#pragma unroll
  for (int m = 0; m < kMatrices; ++m) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float base = fmaxf(rows.base[m][r], top[m][r]);
      const float factor = exp2_approximate(rows.base[m][r] - base);
      rows.base[m][r] = base;
      rows.sum[m][r] *= factor;
#pragma unroll
      for (int n = 0; n < kSize / 8; ++n) {
        rows.out[m][n][2 * r] *= factor;
        rows.out[m][n][2 * r + 1] *= factor;
      }
    }
  }
}

// Looks at 32 keys from `first` on, at `keys` and `values` in shared memory.
template <Extra kExtra, class T, int kSize, int kMatrices>
__device__ __forceinline__ void look(Rows<kSize, kMatrices>& rows, const Attention& in, const Head& head, const T* keys,
                                     const T* values, int first) {
  Scores<kMatrices> scores = {};
  multiply_keys<T>(scores, rows, keys);
  const int own = first + threadIdx.x % 4 * 8;
  const float scale = finish_scores<kExtra>(scores, rows, in, head, own, first + kStep > head.limit(rows.first));
  raise_bases(rows, scores, scale);
#pragma unroll
  for (int m = 0; m < kMatrices; ++m) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float base = rows.base[m][r];
      float sum = 0.0f;
#pragma unroll
      for (int key = 0; key < 8; ++key) {
        float& score = scores[m][key / 2][2 * r + key % 2];
        score = exp2_approximate(score * scale - base);
        sum += score;
      }
      rows.sum[m][r] += sum;
      if (kExtra == Extra::kNone || (kExtra == Extra::kBias && in.dropout.threshold == 0)) continue;
      const int64_t token = head.start + rows.place(m, r), row = token * static_cast<int>(in.heads) + head.number;
      const Draws draws = philox(*in.dropout.seed, in.dropout.site, row, own / kDraws);
#pragma unroll
      for (int word = 0; word < 4; ++word) {  // of two draws, compared in the upper half
        const uint32_t bound = in.dropout.threshold << 16;
        if (draws.word[word] << 16 < bound) scores[m][word][2 * r] = 0.0f;
        if (draws.word[word] < bound) scores[m][word][2 * r + 1] = 0.0f;
      }
    }
  }
  multiply_values<T>(rows, scores, values);
}

}  // namespace
}  // namespace kernels
