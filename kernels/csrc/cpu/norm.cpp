// Bias, dropout, residual and LayerNorm or RMSNorm in one pass over a row, and their gradients in another.
//
// Compiled once for each level of instructions (build.py): KERNELS_LEVEL names it.
#include "norm.h"

#include <cmath>

#include "numbers.h"

namespace kernels {
namespace {

// Parameters as floats, and room for a row.
struct Row {
  Floats weight, shift, bias, factor, value, other;

  Row(int64_t width, Type type, const void* weights, const void* shifts, const void* biases)
      : weight(width), shift(width), bias(width), factor(width + kDraws, 1.0f), value(width), other(width) {
    read_parameter(weights, type, width, weight.data());
    if (shifts != nullptr) read_parameter(shifts, type, width, shift.data());
    if (biases != nullptr) read_parameter(biases, type, width, bias.data());
  }
};

template <class In, class Out>
void forward_row(const NormForward& args, int64_t number, Row& row) {
  const int64_t width = args.width, at = number * width;
  const In* x = static_cast<const In*>(args.x) + at;
  float* value = row.value.data();
  const float* bias = row.bias.data();
  const float* factor = row.factor.data();
  if (args.dropout.threshold != 0) dropout_factors(args.dropout, number, width, row.factor.data());
#pragma omp simd
  for (int64_t i = 0; i < width; ++i) value[i] = (to_float(x[i]) + bias[i]) * factor[i];
  if (args.residual != nullptr) {
    const In* residual = static_cast<const In*>(args.residual) + at;
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) value[i] += to_float(residual[i]);
  }
  if (args.z != nullptr) {
    In* z = static_cast<In*>(args.z) + at;
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) {
      z[i] = from_float<In>(value[i]);
      value[i] = to_float(z[i]);  // as the backward pass sees it
    }
  }
  float sum = 0.0f, squares = 0.0f;
  if (args.mean != nullptr) {
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < width; ++i) sum += value[i];
  }
  const float mean = sum / static_cast<float>(width);
#pragma omp simd reduction(+ : squares)
  for (int64_t i = 0; i < width; ++i) squares += (value[i] - mean) * (value[i] - mean);
  const float rstd = 1.0f / std::sqrt(squares / static_cast<float>(width) + args.eps);
  if (args.mean != nullptr) args.mean[number] = mean;
  args.rstd[number] = rstd;
  Out* y = static_cast<Out*>(args.y) + at;
  const float* weight = row.weight.data();
  const float* shift = row.shift.data();
#pragma omp simd
  for (int64_t i = 0; i < width; ++i) y[i] = from_float<Out>((value[i] - mean) * rstd * weight[i] + shift[i]);
}

template <class In, class Out>
void backward_row(const NormBackward& args, int64_t number, Row& row, float* dweight, float* dshift, float* dbias) {
  const int64_t width = args.width, at = number * width;
  const Out* dy = static_cast<const Out*>(args.dy) + at;
  const In* z = static_cast<const In*>(args.z) + at;
  const float mean = args.mean != nullptr ? args.mean[number] : 0.0f, rstd = args.rstd[number];
  float* normalized = row.value.data();
  float* gradient = row.other.data();
  const float* weight = row.weight.data();
  float sum = 0.0f, product = 0.0f;
#pragma omp simd reduction(+ : sum, product)
  for (int64_t i = 0; i < width; ++i) {
    const float d = to_float(dy[i]);
    normalized[i] = (to_float(z[i]) - mean) * rstd;
    dweight[i] += d * normalized[i];
    dshift[i] += d;
    gradient[i] = d * weight[i];
    sum += gradient[i];
    product += gradient[i] * normalized[i];
  }
  sum = args.mean != nullptr ? sum / static_cast<float>(width) : 0.0f;
  product /= static_cast<float>(width);
#pragma omp simd
  for (int64_t i = 0; i < width; ++i) gradient[i] = (gradient[i] - sum - normalized[i] * product) * rstd;
  if (args.dz != nullptr) {
    const In* dz = static_cast<const In*>(args.dz) + at;
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) gradient[i] += to_float(dz[i]);
  }
  if (args.dresidual != nullptr) {
    In* dresidual = static_cast<In*>(args.dresidual) + at;
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) dresidual[i] = from_float<In>(gradient[i]);
  }
  if (args.dropout.threshold != 0) {
    dropout_factors(args.dropout, number, width, row.factor.data());
    const float* factor = row.factor.data();
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) gradient[i] *= factor[i];
  }
  In* dx = static_cast<In*>(args.dx) + at;
#pragma omp simd
  for (int64_t i = 0; i < width; ++i) dx[i] = from_float<In>(gradient[i]);
  if (args.dbias == nullptr) return;
#pragma omp simd
  for (int64_t i = 0; i < width; ++i) dbias[i] += gradient[i];
}

void norm_forward(const NormForward& args, int64_t first, int64_t last) {
  Row row(args.width, args.parameter, args.weight, args.shift, args.bias);
  with_type(args.input, [&](auto in) {
    with_type(args.output, [&](auto out) {
      for (int64_t r = first; r < last; ++r) forward_row<decltype(in), decltype(out)>(args, r, row);
    });
  });
}

void norm_backward(const NormBackward& args, int64_t first, int64_t last) {
  Row row(args.width, args.parameter, args.weight, nullptr, nullptr);
  for (int64_t block = first; block < last; ++block) {
    float* sums = args.partial + block * 3 * args.width;
    std::memset(sums, 0, 3 * args.width * sizeof(float));
    const int64_t begin = args.rows * block / args.blocks, end = args.rows * (block + 1) / args.blocks;
    with_type(args.input, [&](auto in) {
      with_type(args.output, [&](auto out) {
        for (int64_t r = begin; r < end; ++r) {
          backward_row<decltype(in), decltype(out)>(args, r, row, sums, sums + args.width, sums + 2 * args.width);
        }
      });
    });
  }
}

void norm_reduce(const NormBackward& args, int64_t first, int64_t last) {
  float* const outputs[3] = {args.dweight, args.dshift, args.dbias};
  for (int which = 0; which < 3; ++which) {
    float* out = outputs[which];
    if (out == nullptr) continue;
    for (int64_t i = first; i < last; ++i) out[i] = 0.0f;
    for (int64_t block = 0; block < args.blocks; ++block) {
      const float* sums = args.partial + (block * 3 + which) * args.width;
#pragma omp simd
      for (int64_t i = first; i < last; ++i) out[i] += sums[i];
    }
  }
}

void dropout_add(const DropoutAdd& args, int64_t first, int64_t last) {
  Floats factor(args.width + kDraws, 1.0f);
  with_type(args.type, [&](auto zero) {
    using T = decltype(zero);
    for (int64_t r = first; r < last; ++r) {
      if (args.dropout.threshold != 0) dropout_factors(args.dropout, r, args.width, factor.data());
      const T* x = static_cast<const T*>(args.x) + r * args.width;
      const T* residual = static_cast<const T*>(args.residual) + (args.residual != nullptr ? r * args.width : 0);
      T* out = static_cast<T*>(args.out) + r * args.width;
      const float* factors = factor.data();
      if (args.residual != nullptr) {
#pragma omp simd
        for (int64_t i = 0; i < args.width; ++i) out[i] = from_float<T>(to_float(x[i]) * factors[i] + to_float(residual[i]));
      } else {
#pragma omp simd
        for (int64_t i = 0; i < args.width; ++i) out[i] = from_float<T>(to_float(x[i]) * factors[i]);
      }
    }
  });
}

}  // namespace

extern const NormKernels KERNELS_OF_LEVEL(norm_kernels);
const NormKernels KERNELS_OF_LEVEL(norm_kernels) = {norm_forward, norm_backward, norm_reduce, dropout_add};

}  // namespace kernels
