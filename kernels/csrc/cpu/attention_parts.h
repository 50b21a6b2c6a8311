// What the forward and the backward pass of attention share: where work begins, rows of heads, and scores.
#pragma once

#include <cmath>
#include <type_traits>

#include "../common/whole.h"
#include "attention.h"
#include "packing.h"

namespace kernels {
namespace {

constexpr float kInfinity = __builtin_inff();
constexpr float kLog2E = 1.44269504f, kLn2 = 0.693147181f;

#if defined(__AVX512BF16__)
template <class T>
using WordOf = std::conditional_t<std::is_same_v<T, BFloat16>, Pair, float>;
#else
template <class T>
using WordOf = float;
#endif

// 2^x for x <= 0, 0 below -126.5; off by 1e-7 of it.
inline float power_of_two(float x) {
  const float bounded = x < -127.0f ? -127.0f : x;  // a NaN stays one
  const float n = std::floor(bounded + 0.5f);
  const float r = bounded - n;
  float p = 1.327647178e-3f;
  p = p * r + 9.675541333e-3f;
  p = p * r + 5.550713274e-2f;
  p = p * r + 2.402211972e-1f;
  p = p * r + 6.931469671e-1f;
  return (p * r + 1.0f) * power_of_whole(n);
}

// Where a sequence is, and what its queries see: the keys before `seen`.
struct Sequence {
  int64_t start, length, prefix;
  Mask mask;

  Sequence(const Attention& in, int64_t number)
      : start(in.boundaries[number]),
        length(in.boundaries[number + 1] - start),
        prefix(in.mask == Mask::kPrefix ? in.prefix[number] : 0),
        mask(in.mask) {}

  int64_t seen(int64_t query) const {
    const int64_t before = query + 1 > prefix ? query + 1 : prefix;
    return mask == Mask::kFull || before > length ? length : before;
  }
};

// Of all sequences, filled up to whole panels.
int64_t longest_of(const Attention& in) {
  int64_t longest = 0;
  for (int64_t s = 0; s < in.sequences; ++s) {
    const int64_t length = in.boundaries[s + 1] - in.boundaries[s];
    longest = length > longest ? length : longest;
  }
  return round_up(longest, kPanel);
}

// Calls function(block, sequence, head of keys) for what begins in units [first, last). The sequences of a block, which
// are neighbours, are done in order by the same thread; without blocks each is one.
template <class Function>
void for_units(const Attention& in, int64_t blocks, int64_t first, int64_t last, Function function) {
  const int64_t all = (attention_units(in) - 1) / in.kv_heads;
  int64_t unit = 0, begin = 0, before = 0;  // `before`: the units of one head up to sequence `begin`
  for (int64_t block = 0; block < (blocks > 0 ? blocks : in.sequences); ++block) {
    int64_t end = begin, cost = 0;
    while (end < in.sequences && (blocks > 0 ? (before + cost) * blocks < all * (block + 1) : end == begin)) {
      cost += attention_cost(in.boundaries[end + 1] - in.boundaries[end]);
      ++end;
    }
    for (int64_t head = 0; head < in.kv_heads; ++head, unit += cost) {
      if (unit >= first && unit < last) function(block, begin, end, head);
    }
    begin = end;
    before += cost;
  }
}

// Calls function(sequence, head, first query, end of the queries) for the pieces of heads of queries that begin in units
// [first, last); those that share keys are neighbours.
template <class Function>
void for_pieces(const Attention& in, int64_t queries, int64_t first, int64_t last, Function function) {
  const int64_t group = in.heads / in.kv_heads;
  int64_t unit = 0;
  for (int64_t number = 0; number < in.sequences; ++number) {
    const int64_t length = in.boundaries[number + 1] - in.boundaries[number], cost = attention_cost(length);
    const int64_t of_head = (length + queries - 1) / queries, pieces = group * of_head;
    for (int64_t kv_head = 0; kv_head < in.kv_heads; ++kv_head, unit += cost) {
      for (int64_t piece = 0; piece < pieces; ++piece) {
        const int64_t begins = unit + cost * piece / pieces, begin = piece % of_head * queries;
        if (begins < first || begins >= last) continue;
        const int64_t end = begin + queries < length ? begin + queries : length;
        function(number, kv_head * group + piece / of_head, begin, end);
      }
    }
  }
}

// The rows of a head of a sequence in [tokens, heads, K].
template <class T>
struct Rows {
  T* at;
  int64_t stride;

  template <class Pointer>
  Rows(Pointer all, const Attention& in, int64_t heads, int64_t head, int64_t token)
      : at(static_cast<T*>(all) + (token * heads + head) * in.size), stride(heads * in.size) {}

  T* row(int64_t number) const { return at + number * stride; }
};

// A row of factor * from.
template <class T>
void write_row(const float* from, float factor, int64_t size, T* to) {
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) to[i] = from_float<T>(from[i] * factor);
}

// scale * score + bias, in units of log 2, of keys [first, first + width); -infinity where the query does not see them.
void score_row(const Attention& in, const Sequence& sequence, int64_t head, int64_t query, int64_t first, int64_t width,
               float* scores) {
  const int64_t before = sequence.seen(query) - first, seen = before < 0 ? 0 : before < width ? before : width;
  const float scale = in.scale * kLog2E;
#pragma omp simd
  for (int64_t j = 0; j < width; ++j) scores[j] *= scale;
  if (in.bias != nullptr) {
    const float* bias = in.bias + head * (2 * in.longest - 1) + in.longest - 1 - query + first;
#pragma omp simd
    for (int64_t j = 0; j < seen; ++j) scores[j] += bias[j] * kLog2E;
  }
  for (int64_t j = seen; j < width; ++j) scores[j] = -kInfinity;
}

}  // namespace
}  // namespace kernels
