// Products of matrices that fit a core's caches: one micro-kernel, and how its operands are laid out for it.
//
// A product multiplies words. A word is a float; or, where the CPU multiplies bf16, a pair of bf16 numbers of which the
// low half comes first, and both products are added to the same float. All sums are floats. What is multiplied step by
// step (the columns of the left side, the rows of the right one) is therefore counted in words: steps.
#pragma once

#include "numbers.h"
#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

namespace kernels {
namespace {

// The sums of kBlockRows x kBlockVectors vectors stay in registers, beside a row of the right side and one number.
#if defined(__AVX512F__)
constexpr int kLanes = 16, kBlockRows = 6, kBlockVectors = 4;
#elif defined(__AVX2__)
constexpr int kLanes = 8, kBlockRows = 6, kBlockVectors = 2;
#else
constexpr int kLanes = 4, kBlockRows = 4, kBlockVectors = 2;
#endif
constexpr int kPanel = kLanes * kBlockVectors;  // columns
constexpr int kDepth = 128;                     // steps of a panel that stay in the first cache

using Vector = float __attribute__((vector_size(4 * kLanes)));
using Halves = int16_t __attribute__((vector_size(4 * kLanes)));

struct Pair {
  uint32_t bits;
};

template <class V>
inline V load(const void* from) {
  V vector;
  std::memcpy(&vector, from, sizeof(vector));
  return vector;
}

template <class V>
inline void store(void* to, const V& vector) {
  std::memcpy(to, &vector, sizeof(vector));
}

constexpr int64_t round_up(int64_t number, int64_t multiple) { return (number + multiple - 1) / multiple * multiple; }

// What the micro-kernel needs of a word.
inline __attribute__((always_inline)) void multiply_add(Vector& sum, float left, const Vector& right) {
  sum += left * right;
}
template <class Word>
struct Numbers;
template <>
struct Numbers<float> {
  using Vectors = Vector;
  static constexpr int kOfWord = 1;
};
#if defined(__AVX512BF16__)
inline __attribute__((always_inline)) void multiply_add(Vector& sum, Pair left, const __m512bh& right) {
  sum = _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(_mm512_set1_epi32(static_cast<int>(left.bits))), right);
}
template <>
struct Numbers<Pair> {
  using Vectors = __m512bh;
  static constexpr int kOfWord = 2;
};
#endif

// Steps that so many numbers take.
template <class Word>
constexpr int64_t steps_of(int64_t numbers) {
  return (numbers + Numbers<Word>::kOfWord - 1) / Numbers<Word>::kOfWord;
}

// The left side of a product: word (r, s) is at[r * row + s * step].
template <class Word>
struct Left {
  const Word* at;
  int64_t row, step;
};

// The right side: panels of kPanel columns, [panels][steps][kPanel].
template <class Word>
struct Right {
  const Word* at;
  int64_t steps;

  Right from_step(int64_t step) const { return {at + step * kPanel, steps}; }
  Right from_column(int64_t column) const { return {at + column / kPanel * steps * kPanel, steps}; }
  static int64_t size(int64_t steps, int64_t columns) { return steps * round_up(columns, kPanel); }
};

// The micro-kernel: kRows rows of the left side times kVectors vectors of columns of a panel.
template <int kRows, int kVectors, class Word>
inline void multiply_block(Left<Word> left, const Word* right, int64_t steps, float* out, int64_t stride, bool add) {
  using Vectors = typename Numbers<Word>::Vectors;
  Vector sums[kRows][kVectors] = {};
  for (int64_t step = 0; step < steps; ++step) {
    Vectors row[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) row[v] = load<Vectors>(right + step * kPanel + v * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) multiply_add(sums[r][v], left.at[r * left.row + step * left.step], row[v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      float* place = out + r * stride + v * kLanes;
      store(place, add ? load<Vector>(place) + sums[r][v] : sums[r][v]);
    }
  }
}

// All rows: kRows at a time, then those that are left over.
template <int kRows, int kVectors, class Word>
void multiply_panel(Left<Word> left, int64_t rows, const Word* right, int64_t steps, float* out, int64_t stride,
                    bool add) {
  for (; rows >= kRows; rows -= kRows) {
    multiply_block<kRows, kVectors>(left, right, steps, out, stride, add);
    left.at += kRows * left.row;
    out += kRows * stride;
  }
  if constexpr (kRows > 1) {
    if (rows > 0) multiply_panel<kRows - 1, kVectors>(left, rows, right, steps, out, stride, add);
  }
}

// As many vectors as the columns take.
template <int kVectors, class Word>
void multiply_columns(Left<Word> left, int64_t rows, const Word* right, int64_t steps, int64_t columns, float* out,
                      int64_t stride, bool add) {
  if constexpr (kVectors > 1) {
    if (columns <= (kVectors - 1) * kLanes) {
      return multiply_columns<kVectors - 1>(left, rows, right, steps, columns, out, stride, add);
    }
  }
  multiply_panel<kBlockRows, kVectors>(left, rows, right, steps, out, stride, add);
}

// out = left right, or out += left right: [rows, columns], rows `stride` floats apart. The last vector of columns is
// written as a whole.
template <class Word>
void multiply(Left<Word> left, int64_t rows, Right<Word> right, int64_t steps, int64_t columns, float* out,
              int64_t stride, bool add) {
  for (int64_t first = 0; first < steps; first += kDepth) {
    const int64_t depth = steps - first < kDepth ? steps - first : kDepth;
    const Left<Word> part{left.at + first * left.step, left.row, left.step};
    for (int64_t column = 0; column < columns; column += kPanel) {
      const Word* panel = right.from_step(first).from_column(column).at;
      const int64_t width = columns - column < kPanel ? columns - column : kPanel;
      multiply_columns<kBlockVectors>(part, rows, panel, depth, width, out + column, stride, add || first > 0);
    }
  }
}

}  // namespace
}  // namespace kernels
