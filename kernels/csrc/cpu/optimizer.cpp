// Gradient norm, AdamW and LAMB over elements of a tensor.
//
// Compiled once for each level of instructions (build.py): KERNELS_LEVEL names it. Without -ffast-math, whose roots of
// tiny and infinite numbers are NaN; memory is what these loops wait for.
#include "optimizer.h"

#include <cmath>
#include <type_traits>

#include "numbers.h"

namespace kernels {
namespace {

double squared_norm(const void* array, Type type, int64_t first, int64_t last) {
  double total = 0.0;
  with_type(type, [&](auto zero) {
    const auto* values = static_cast<const decltype(zero)*>(array);
#pragma omp simd reduction(+ : total)
    for (int64_t i = first; i < last; ++i) {
      const double value = to_float(values[i]);
      total += value * value;
    }
  });
  return total;
}

// The arrays of a listed tensor, and its numbers.
template <class G>
struct Arrays {
  const G* gradient;
  float* weight;
  float* first;
  float* second;
  float factor;

  Arrays(const Listed& item, const Adam& adam)
      : gradient(static_cast<const G*>(item.gradient)),
        weight(item.weight),
        first(item.first),
        second(item.second),
        factor(adam.factor != nullptr ? *adam.factor : 1.0f) {}
};

inline float direction(const Adam& adam, float first, float second) {
  return first * adam.scale1 / (std::sqrt(second) * adam.scale2 + adam.eps);
}

template <class G, class Copy>
void adamw_of(const Listed& item, const Adam& adam, Copy* copy, int64_t from, int64_t to) {
  const Arrays<G> arrays(item, adam);
  const Adam a = adam;
  const float keep = 1.0f - a.rate * a.decay;
  const G* gradient = arrays.gradient;
  float *weight = arrays.weight, *first = arrays.first, *second = arrays.second;
#pragma omp simd
  for (int64_t i = from; i < to; ++i) {
    const float scaled = to_float(gradient[i]) * arrays.factor;
    first[i] = a.beta1 * first[i] + a.rest1 * scaled;
    second[i] = a.beta2 * second[i] + a.rest2 * scaled * scaled;
    weight[i] = keep * weight[i] - a.rate * direction(a, first[i], second[i]);
    if constexpr (!std::is_same_v<Copy, void>) copy[i] = from_float<Copy>(weight[i]);
  }
}

void adamw(const Listed& item, const Adam& adam, Type gradient, Type copy, int64_t from, int64_t to) {
  with_type(gradient, [&](auto zero) {
    using G = decltype(zero);
    if (item.copy == nullptr) {
      adamw_of<G, void>(item, adam, nullptr, from, to);
    } else if (copy == Type::kBFloat16) {
      adamw_of<G>(item, adam, static_cast<BFloat16*>(item.copy), from, to);
    } else {
      adamw_of<G>(item, adam, static_cast<Float16*>(item.copy), from, to);
    }
  });
}

void lamb_moments(const Listed& item, const Adam& adam, Type type, int64_t from, int64_t to, double* sums) {
  with_type(type, [&](auto zero) {
    using G = decltype(zero);
    const Arrays<G> arrays(item, adam);
    const Adam a = adam;
    const G* gradient = arrays.gradient;
    float *weight = arrays.weight, *first = arrays.first, *second = arrays.second;
    double weights = 0.0, updates = 0.0;
#pragma omp simd reduction(+ : weights, updates)
    for (int64_t i = from; i < to; ++i) {
      const float scaled = to_float(gradient[i]) * arrays.factor;
      first[i] = a.beta1 * first[i] + a.rest1 * scaled;
      second[i] = a.beta2 * second[i] + a.rest2 * scaled * scaled;
      const double value = weight[i], update = direction(a, first[i], second[i]) + a.decay * weight[i];
      weights += value * value;
      updates += update * update;
    }
    sums[0] = weights;
    sums[1] = updates;
  });
}

void lamb_step(const Listed& item, const Adam& adam, float ratio, int64_t from, int64_t to) {
  const Adam a = adam;
  const float rate = a.rate * ratio;
  float* weight = item.weight;
  const float *first = item.first, *second = item.second;
#pragma omp simd
  for (int64_t i = from; i < to; ++i) weight[i] -= rate * (direction(a, first[i], second[i]) + a.decay * weight[i]);
}

}  // namespace

extern const OptimizerKernels KERNELS_OF_LEVEL(optimizer_kernels);
const OptimizerKernels KERNELS_OF_LEVEL(optimizer_kernels) = {squared_norm, adamw, lamb_moments, lamb_step};

}  // namespace kernels
