// GELU, its tanh form and SiLU, and their derivatives: each from one exponential and one division.
//
// Negative tails are products of small numbers, not differences of large ones: they keep their digits down to 2^-126.
// -inf gives 0, +inf itself, and a NaN stays one.
#pragma once

#include <cstdint>
#include <cstring>

#include "philox.h"

namespace kernels {

enum class Activation : int32_t { kGelu = 0, kGeluTanh = 1, kSilu = 2 };

struct Activated {
  float value, derivative;
};

constexpr float kSaturated = 128.0f;  // beyond it an activation is 0 or the identity
constexpr float kLog2E = 1.44269504f;

// 2^x for x <= 0, and 0 below 2^-126.
KERNELS_HD float power_of_two(float x) {
#if defined(__CUDA_ARCH__)
  return exp2f(x);
#else
  x = x < -127.0f ? -127.0f : x;
  const float whole = __builtin_rintf(x), part = x - whole;
  // minimax in [-1/2, 1/2], relative error 1e-7
  float power = 0.00132764698f;
  power = power * part + 0.00967554197f;
  power = power * part + 0.0555071329f;
  power = power * part + 0.240221197f;
  power = power * part + 0.693146967f;
  power = power * part + 1.0f;
  const uint32_t exponent = static_cast<uint32_t>(static_cast<int32_t>(whole) + 127) << 23;
  float scale;
  std::memcpy(&scale, &exponent, sizeof(scale));
  return power * scale;
#endif
}

KERNELS_HD float reciprocal(float x) {
#if defined(__CUDA_ARCH__)
  return __fdividef(1.0f, x);
#else
  return 1.0f / x;
#endif
}

// h Phi(h), Phi the normal distribution (Hendrycks and Gimpel 2016, arXiv:1606.08415). Phi(-a) = exp(-a^2 / 2) t P(t)
// with t = 1 / (1 + 0.35 a), as Abramowitz and Stegun 7.1.26; P is minimax for a in [0, 13.5], relative error 3e-8.
KERNELS_HD Activated gelu(float h, float bounded) {
  const float a = bounded < 0.0f ? -bounded : bounded;
  const float power = power_of_two(a * a * (-0.5f * kLog2E));
  const float t = reciprocal(1.0f + 0.35f * a);
  float tail = -0.0291259343f;
  tail = tail * t + 0.14387257f;
  tail = tail * t - 0.255505248f;
  tail = tail * t + 0.158930055f;
  tail = tail * t - 0.0229376463f;
  tail = tail * t + 0.105433141f;
  tail = tail * t + 0.119852389f;
  tail = tail * t + 0.139859088f;
  tail = tail * t + 0.13962157f;
  tail *= t * power;
  const float share = bounded < 0.0f ? tail : 1.0f - tail;
  return {h * share, share + bounded * (power * 0.398942280f)};
}

// h sigmoid(u), for u of the sign of h and du its derivative.
KERNELS_HD Activated sigmoid_gate(float h, float bounded, float u, float du) {
  const float power = power_of_two((u < 0.0f ? u : -u) * kLog2E);
  const float larger = reciprocal(1.0f + power), smaller = power * larger;
  const float share = u < 0.0f ? smaller : larger;
  return {h * share, share + bounded * (smaller * larger * du)};
}

template <Activation kKind>
KERNELS_HD Activated activate(float x) {
  const float h = x < -kSaturated ? -kSaturated : x;
  const float bounded = h > kSaturated ? kSaturated : h;
  if constexpr (kKind == Activation::kGelu) {
    return gelu(h, bounded);
  } else if constexpr (kKind == Activation::kGeluTanh) {
    // sigmoid(2 z) = (1 + tanh z) / 2, z = sqrt(2 / pi) (h + 0.044715 h^3)
    constexpr float kFactor = 1.59576912f, kCube = 0.0713548163f;
    const float square = bounded * bounded;
    return sigmoid_gate(h, bounded, bounded * (kFactor + kCube * square), kFactor + 3.0f * kCube * square);
  } else {
    return sigmoid_gate(h, bounded, bounded, 1.0f);
  }
}

}  // namespace kernels
