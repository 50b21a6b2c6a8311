// Softmax cross-entropy: a row stays in the cache while its maximum, its sum and its gradient are made.
//
// Compiled once for each level of instructions (build.py): KERNELS_LEVEL names it.
#include "cross_entropy.h"

#include <cmath>

#include "../common/whole.h"
#include "numbers.h"

namespace kernels {
namespace {

constexpr float kInfinity = __builtin_inff(), kNaN = __builtin_nanf("");
constexpr float kLowest = -87.3f;  // below, e^x is no normal number

// e^x for x <= 0, 0 below kLowest: the polynomial of Cephes' expf (Moshier), 2 units in the last place.
inline float exponential(float x) {
  const float bounded = x < kLowest ? kLowest : x;  // a NaN stays one
  const float n = std::floor(bounded * 1.44269504f + 0.5f);
  const float r = (bounded - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  return x < kLowest ? 0.0f : p * power_of_whole(n);
}

// Whether a column is the first of the largest.
template <class T>
bool is_first_maximum(const T* logits, int64_t width, int64_t column) {
  const float own = to_float(logits[column]);
  int32_t others = 0;
#pragma omp simd reduction(+ : others)
  for (int64_t i = 0; i < column; ++i) others += to_float(logits[i]) < own ? 0 : 1;
#pragma omp simd reduction(+ : others)
  for (int64_t i = column + 1; i < width; ++i) others += to_float(logits[i]) <= own ? 0 : 1;
  return others == 0;
}

template <class T>
float maximum_of(const T* logits, int64_t width) {
  float maximum = -kInfinity;
#pragma omp simd reduction(max : maximum)
  for (int64_t i = 0; i < width; ++i) maximum = to_float(logits[i]) > maximum ? to_float(logits[i]) : maximum;
  return maximum;
}

// Sum of exp(x - shift); `values` keeps the terms where it is not null.
template <class T>
float total_of(const T* logits, int64_t width, float shift, float* values) {
  float total = 0.0f;
  if (values == nullptr) {
#pragma omp simd reduction(+ : total)
    for (int64_t i = 0; i < width; ++i) total += exponential(to_float(logits[i]) - shift);
    return total;
  }
#pragma omp simd reduction(+ : total)
  for (int64_t i = 0; i < width; ++i) {
    values[i] = exponential(to_float(logits[i]) - shift);
    total += values[i];
  }
  return total;
}

template <class T>
void clear(T* gradient, int64_t width) {
  std::memset(gradient, 0, width * sizeof(T));
}

template <class T>
void forward_row(const CrossEntropyForward& args, int64_t row, float* values) {
  const int64_t width = args.width, label = args.labels[row];
  const T* logits = static_cast<const T*>(args.logits) + row * width;
  T* gradient = args.gradient != nullptr ? static_cast<T*>(args.gradient) + row * width : nullptr;
  const bool ignored = label == kIgnoredLabel, known = label >= 0 && label < width;
  const float largest = maximum_of(logits, width), maximum = largest == -kInfinity ? 0.0f : largest;
  const float total = total_of(logits, width, maximum, gradient != nullptr ? values : nullptr);
  // Of two large numbers the difference first; fast arithmetic must not add the logarithm before.
  const volatile float distance = maximum - (known ? to_float(logits[label]) : kNaN);
  args.losses[row] = ignored ? 0.0f : distance + std::log(total);
  args.maximum[row] = maximum;
  args.total[row] = total;
  if (args.right != nullptr) args.right[row] = known && is_first_maximum(logits, width, label) ? 1 : 0;
  if (gradient == nullptr) return;
  if (ignored) return clear(gradient, width);
  const float factor = known ? args.scale / total : kNaN;
#pragma omp simd
  for (int64_t i = 0; i < width; ++i) gradient[i] = from_float<T>(values[i] * factor);
  if (known) gradient[label] = from_float<T>((values[label] / total - 1.0f) * args.scale);
}

template <class T>
void backward_row(const CrossEntropyBackward& args, int64_t row) {
  const int64_t width = args.width, label = args.labels[row];
  const T* logits = static_cast<const T*>(args.logits) + row * width;
  T* gradient = static_cast<T*>(args.gradient) + row * width;
  if (label == kIgnoredLabel) return clear(gradient, width);
  const bool known = label >= 0 && label < width;
  const float upstream = known ? *args.upstream : kNaN;
  const float maximum = args.maximum[row], factor = upstream / args.total[row];
  const float at_label = known ? exponential(to_float(logits[label]) - maximum) / args.total[row] : 0.0f;
#pragma omp simd
  for (int64_t i = 0; i < width; ++i) gradient[i] = from_float<T>(exponential(to_float(logits[i]) - maximum) * factor);
  if (known) gradient[label] = from_float<T>((at_label - 1.0f) * upstream);
}

void cross_entropy_forward(const CrossEntropyForward& args, int64_t first, int64_t last) {
  Floats values(args.gradient != nullptr ? args.width : 0);
  with_type(args.type, [&](auto zero) {
    for (int64_t row = first; row < last; ++row) forward_row<decltype(zero)>(args, row, values.data());
  });
}

void cross_entropy_backward(const CrossEntropyBackward& args, int64_t first, int64_t last) {
  with_type(args.type, [&](auto zero) {
    for (int64_t row = first; row < last; ++row) backward_row<decltype(zero)>(args, row);
  });
}

}  // namespace

extern const CrossEntropyKernels KERNELS_OF_LEVEL(cross_entropy_kernels);
const CrossEntropyKernels KERNELS_OF_LEVEL(cross_entropy_kernels) = {cross_entropy_forward, cross_entropy_backward};

}  // namespace kernels
