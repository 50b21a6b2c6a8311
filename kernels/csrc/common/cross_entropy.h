// The arguments of softmax cross-entropy. R rows, V columns.
#pragma once

#include "api.h"

namespace kernels {

constexpr int64_t kIgnoredLabel = -100;  // of rows that count for nothing

// loss = log(sum(exp(x))) - x[label], row by row. A label that is no column makes it and the row's gradient NaN.
struct CrossEntropyForward {
  const void* logits;     // [R, V]
  const int64_t* labels;  // [R]
  float* losses;          // [R]
  float* maximum;         // [R] of the row
  float* total;           // [R] sum of exp(x - maximum); both give the softmax without loss of digits
  int32_t* right;         // [R] whether the label is the row's first largest column, or null
  void* gradient;         // [R, V] scale * (softmax - onehot), or null; may be the logits
  int64_t rows, width;
  Type type;
  float scale;
};

// gradient = upstream * (softmax - onehot); 0 for ignored rows whatever their logits, NaN where a label is no column.
struct CrossEntropyBackward {
  const void* logits;     // [R, V]
  const int64_t* labels;  // [R]
  const float* maximum;   // [R]
  const float* total;     // [R]
  const float* upstream;  // [1]
  void* gradient;         // [R, V], may be the logits
  int64_t rows, width;
  Type type;
};

}  // namespace kernels
