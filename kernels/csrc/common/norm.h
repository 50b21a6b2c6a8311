// The arguments of the norms. R rows, W columns.
#pragma once

#include "api.h"

namespace kernels {

// z = residual + dropout(x + bias);  y = (z - mean) * rstd * weight + shift, row by row. Without `mean` the rows keep
// their mean (RMSNorm).
struct NormForward {
  const void* x;         // [R, W] input type
  const void* bias;      // [W] parameter type, or null
  const void* residual;  // [R, W] input type, or null
  const void* weight;    // [W] parameter type
  const void* shift;     // [W] parameter type, or null
  void* z;               // [R, W] input type, or null where it is x
  void* y;               // [R, W] output type
  float* mean;           // [R], or null
  float* rstd;           // [R]
  int64_t rows, width;
  Type input, output, parameter;
  float eps;
  Dropout dropout;
};

// The gradients of NormForward. `partial` holds the sums of each block of rows until they are added up in order.
struct NormBackward {
  const void* dy;       // [R, W] output type
  const void* dz;       // [R, W] input type: gradient that reaches z by itself, or null
  const void* z;        // [R, W] input type
  const void* weight;   // [W] parameter type
  const float* mean;    // [R], or null
  const float* rstd;    // [R]
  void* dx;             // [R, W] input type
  void* dresidual;      // [R, W] input type, or null where it is dx or not wanted
  float* dweight;       // [W]
  float* dshift;        // [W], or null
  float* dbias;         // [W], or null
  float* partial;       // [blocks, 3, W]
  int64_t rows, width, blocks;
  Type input, output, parameter;
  Dropout dropout;
};

// out = residual + dropout(x); its gradient for x is the same without a residual.
struct DropoutAdd {
  const void* x;         // [R, W]
  const void* residual;  // [R, W], or null
  void* out;             // [R, W]
  int64_t rows, width;
  Type type;  // of all three
  Dropout dropout;
};

}  // namespace kernels
