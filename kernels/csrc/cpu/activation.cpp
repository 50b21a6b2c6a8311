// Bias and activation in one pass over a row, plain or gated, and their gradients in another.
//
// Compiled once for each level of instructions (build.py): KERNELS_LEVEL names it.
#include "activation.h"

#include "numbers.h"

namespace kernels {
namespace {

template <Activation kKind, class T>
void forward_row(const T* x, const float* bias, T* y, int64_t width) {
#pragma omp simd
  for (int64_t i = 0; i < width; ++i) y[i] = from_float<T>(activate<kKind>(to_float(x[i]) + bias[i]).value);
}

template <Activation kKind, class T>
void gated_forward_row(const T* x, const float* bias, T* y, int64_t width) {
  const T* other = x + width;
  const float* other_bias = bias + width;
#pragma omp simd
  for (int64_t i = 0; i < width; ++i) {
    const float gate = activate<kKind>(to_float(x[i]) + bias[i]).value;
    y[i] = from_float<T>(gate * (to_float(other[i]) + other_bias[i]));
  }
}

template <Activation kKind, class T>
void backward_row(const T* dy, const T* x, const float* bias, T* dx, float* dbias, int64_t width) {
#pragma omp simd
  for (int64_t i = 0; i < width; ++i) {
    const float gradient = to_float(dy[i]) * activate<kKind>(to_float(x[i]) + bias[i]).derivative;
    dx[i] = from_float<T>(gradient);
    dbias[i] += gradient;
  }
}

template <Activation kKind, class T>
void gated_backward_row(const T* dy, const T* x, const float* bias, T* dx, float* dbias, int64_t width) {
  const T* other = x + width;
  const float* other_bias = bias + width;
  T* other_dx = dx + width;
  float* other_dbias = dbias + width;
#pragma omp simd
  for (int64_t i = 0; i < width; ++i) {
    const Activated gate = activate<kKind>(to_float(x[i]) + bias[i]);
    const float gradient = to_float(dy[i]);
    const float first = gradient * (to_float(other[i]) + other_bias[i]) * gate.derivative;
    const float second = gradient * gate.value;
    dx[i] = from_float<T>(first);
    other_dx[i] = from_float<T>(second);
    dbias[i] += first;
    other_dbias[i] += second;
  }
}

template <class Function>
void with_kind(Activation kind, Function function) {
  switch (kind) {
    case Activation::kGelu: return function.template operator()<Activation::kGelu>();
    case Activation::kGeluTanh: return function.template operator()<Activation::kGeluTanh>();
    case Activation::kSilu: return function.template operator()<Activation::kSilu>();
  }
}

template <class Args>
int64_t columns_of(const Args& args) {
  return args.gated ? 2 * args.width : args.width;
}

template <class Args>
void read_bias(const Args& args, float* out) {
  if (args.bias != nullptr) read_parameter(args.bias, args.parameter, columns_of(args), out);
}

void activation_forward(const ActivationForward& args, int64_t first, int64_t last) {
  const int64_t width = args.width, columns = columns_of(args);
  Floats bias(columns);
  read_bias(args, bias.data());
  with_type(args.type, [&](auto zero) {
    using T = decltype(zero);
    const T* x = static_cast<const T*>(args.x);
    T* y = static_cast<T*>(args.y);
    with_kind(args.kind, [&]<Activation kKind>() {
      const auto row = args.gated ? gated_forward_row<kKind, T> : forward_row<kKind, T>;
      for (int64_t r = first; r < last; ++r) row(x + r * columns, bias.data(), y + r * width, width);
    });
  });
}

void activation_backward(const ActivationBackward& args, int64_t first, int64_t last) {
  const int64_t width = args.width, columns = columns_of(args);
  Floats bias(columns), unwanted(args.partial == nullptr ? columns : 0);
  read_bias(args, bias.data());
  for (int64_t block = first; block < last; ++block) {
    float* sums = args.partial == nullptr ? unwanted.data() : args.partial + block * columns;
    std::memset(sums, 0, columns * sizeof(float));
    const int64_t begin = args.rows * block / args.blocks, end = args.rows * (block + 1) / args.blocks;
    with_type(args.type, [&](auto zero) {
      using T = decltype(zero);
      const T* dy = static_cast<const T*>(args.dy);
      const T* x = static_cast<const T*>(args.x);
      T* dx = static_cast<T*>(args.dx);
      with_kind(args.kind, [&]<Activation kKind>() {
        const auto row = args.gated ? gated_backward_row<kKind, T> : backward_row<kKind, T>;
        for (int64_t r = begin; r < end; ++r) {
          row(dy + r * width, x + r * columns, bias.data(), dx + r * columns, sums, width);
        }
      });
    });
  }
}

void activation_reduce(const ActivationBackward& args, int64_t first, int64_t last) {
  for (int64_t i = first; i < last; ++i) args.dbias[i] = 0.0f;
  for (int64_t block = 0; block < args.blocks; ++block) {
    const float* sums = args.partial + block * columns_of(args);
#pragma omp simd
    for (int64_t i = first; i < last; ++i) args.dbias[i] += sums[i];
  }
}

}  // namespace

extern const ActivationKernels KERNELS_OF_LEVEL(activation_kernels);
const ActivationKernels KERNELS_OF_LEVEL(activation_kernels) = {activation_forward, activation_backward,
                                                                activation_reduce};

}  // namespace kernels
