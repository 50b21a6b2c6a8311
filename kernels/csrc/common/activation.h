// The arguments of the activations. R rows, W columns of the result, C columns of the input: W, or 2 W where gated.
#pragma once

#include "activation_math.h"
#include "api.h"

namespace kernels {

// y = act(x + bias); gated: y = act(first half of x + bias) * (second half of x + bias).
struct ActivationForward {
  const void* x;     // [R, C]
  const void* bias;  // [C] parameter type, or null
  void* y;           // [R, W]
  int64_t rows, width;
  Type type, parameter;  // of x and y, of bias
  Activation kind;
  bool gated;
};

// The gradients of ActivationForward. `partial` holds the sums of each block of rows until they are added up in order.
struct ActivationBackward {
  const void* dy;    // [R, W]
  const void* x;     // [R, C]
  const void* bias;  // [C] parameter type, or null
  void* dx;          // [R, C]
  float* dbias;      // [C], or null
  float* partial;    // [blocks, C], or null where dbias is
  int64_t rows, width, blocks;
  Type type, parameter;
  Activation kind;
  bool gated;
};

}  // namespace kernels
