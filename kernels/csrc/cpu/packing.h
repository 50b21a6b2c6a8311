// How the sides of a product are laid out: rows of numbers as words, and panels for the right side (matrix.h).
#pragma once

#include <utility>

#include "matrix.h"

namespace kernels {
namespace {

// Asks for numbers that are read soon; they may lie behind the end.
template <class T>
void prefetch(const T* from, int64_t size) {
  for (int64_t i = 0; i < size; i += 64 / sizeof(T)) __builtin_prefetch(from + i);
}

// Rows of numbers as words: [rows, steps_of(size)], from rows that are `stride` numbers apart.
template <class T>
void read_rows(const T* from, int64_t stride, int64_t rows, int64_t size, float* out) {
  for (int64_t r = 0; r < rows; ++r) {
    prefetch(from + r * stride + size, size);
#pragma omp simd
    for (int64_t i = 0; i < size; ++i) out[r * size + i] = to_float(from[r * stride + i]);
  }
}

constexpr std::make_integer_sequence<int, kLanes> kEachLane;

// One step of a transposition: the off-diagonal halves of 2 kHalf x 2 kHalf blocks change places.
template <int kHalf, int... kLane>
inline __attribute__((always_inline)) void swap_halves(Vector& upper, Vector& lower,
                                                       std::integer_sequence<int, kLane...>) {
  const Vector above =
      __builtin_shufflevector(upper, lower, ((kLane & kHalf) == 0 ? kLane : kLanes + kLane - kHalf)...);
  lower = __builtin_shufflevector(upper, lower, ((kLane & kHalf) == 0 ? kLane + kHalf : kLanes + kLane)...);
  upper = above;
}

template <int kHalf>
inline __attribute__((always_inline)) void transpose_lanes(Vector (&rows)[kLanes]) {
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) {
    if ((i & kHalf) == 0) swap_halves<kHalf>(rows[i], rows[i + kHalf], kEachLane);
  }
  if constexpr (2 * kHalf < kLanes) transpose_lanes<2 * kHalf>(rows);
}

// The transpose of rows of words as the right side of a product: its steps are the words of a row, its columns are the
// rows. What fills up the last vector of columns is 0.
template <class Word>
Right<Word> transposed(const Word* from, int64_t rows, int64_t steps, Word* out) {
  for (int64_t column = 0; column < rows; column += kLanes) {
    Word* panel = out + column / kPanel * steps * kPanel + column % kPanel;
    for (int64_t step = 0; step < steps; step += kLanes) {
      Vector block[kLanes] = {};
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) {
        if (column + i < rows) block[i] = load<Vector>(from + (column + i) * steps + step);
      }
      transpose_lanes<1>(block);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) store(panel + (step + i) * kPanel, block[i]);
    }
  }
  return {out, steps};
}

// Rows of words as the right side of a product: its steps are the rows, its columns the `size` numbers of a row.
inline Right<float> as_steps(const float* from, int64_t rows, int64_t size, float* out) {
  for (int64_t column = 0; column < size; column += kPanel) {
    const int64_t width = size - column < kPanel ? size - column : kPanel;
    float* panel = out + column * rows;
    for (int64_t r = 0; r < rows; ++r) {
      const float* row = from + r * size + column;
      for (int64_t i = 0; i < width; i += kLanes) store(panel + r * kPanel + i, load<Vector>(row + i));
    }
  }
  return {out, rows};
}

// Floats as the left side of a product, [rows, width] with `width` a multiple of kLanes: by rows, and by columns, where
// the product is with the transpose. `out` is room for as many words, for what is not yet laid out so.
inline Left<float> left_of(const float* from, int64_t, int64_t width, float*) { return {from, width, 1}; }
inline Left<float> left_of_transposed(const float* from, int64_t, int64_t width, float*) { return {from, 1, width}; }

#if defined(__AVX512BF16__)

inline void read_rows(const BFloat16* from, int64_t stride, int64_t rows, int64_t size, Pair* out) {
  for (int64_t r = 0; r < rows; ++r) {
    prefetch(from + r * stride + size, size);
    std::memcpy(out + r * size / 2, from + r * stride, size * sizeof(BFloat16));
  }
}

// Numbers i of two vectors, of 16 bits each, as pairs: those of the lower half, or of the upper one.
inline __m512i pairs_of(const __m512i& even, const __m512i& odd, int first) {
  Halves places;
  for (int i = 0; i < kLanes; ++i) {
    places[2 * i] = static_cast<int16_t>(first + i);
    places[2 * i + 1] = static_cast<int16_t>(2 * kLanes + first + i);
  }
  return _mm512_permutex2var_epi16(even, reinterpret_cast<__m512i>(places), odd);
}

// A vector as bf16, in the lower half.
inline __m512i rounded(const Vector& vector) {
  return _mm512_castsi256_si512(reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(vector)));
}

// Two rows make a step.
inline Right<Pair> as_steps(const Pair* from, int64_t rows, int64_t size, Pair* out) {
  const int64_t steps = (rows + 1) / 2;
  for (int64_t step = 0; step < steps; ++step) {
    const Pair* even = from + step * size;
    for (int64_t column = 0; column < size; column += 2 * kLanes) {
      const __m512i upper = load<__m512i>(even + column / 2);
      const __m512i lower = 2 * step + 1 < rows ? load<__m512i>(even + (size + column) / 2) : __m512i{};
      Pair* panel = out + column / kPanel * steps * kPanel + step * kPanel + column % kPanel;
      store(panel, pairs_of(upper, lower, 0));
      store(panel + kLanes, pairs_of(upper, lower, kLanes));
    }
  }
  return {out, steps};
}

inline Left<Pair> left_of(const float* from, int64_t rows, int64_t width, Pair* out) {
  for (int64_t i = 0; i < rows * width; i += kLanes) store(out + i / 2, _mm512_cvtneps_pbh(load<Vector>(from + i)));
  return {out, width / 2, 1};
}

inline Left<Pair> left_of_transposed(const float* from, int64_t rows, int64_t width, Pair* out) {
  for (int64_t r = 0; r < rows; r += 2) {
    for (int64_t i = 0; i < width; i += kLanes) {
      const Vector even = load<Vector>(from + r * width + i);
      const Vector odd = r + 1 < rows ? load<Vector>(from + (r + 1) * width + i) : Vector{};
      store(out + r / 2 * width + i, pairs_of(rounded(even), rounded(odd), 0));
    }
  }
  return {out, 1, width};
}

#endif

}  // namespace
}  // namespace kernels
