// GELU, its tanh form and SiLU, and their derivatives: each from one exponential and one division.
//
// Negative tails are products of small numbers, not differences of large ones: they keep their digits down to 2^-126.
// -inf gives 0, +inf itself, and a NaN stays one.
#pragma once

#include <cmath>
#include <cstdint>

#include "whole.h"

namespace kernels {

enum class Activation : int32_t { kGelu = 0, kGeluTanh = 1, kSilu = 2 };

struct Activated {
  float value, derivative;
};

constexpr float kLog2E = 1.44269504f;

// 2^x for x in [-127.4, 0]; 0 where that is below 2^-126.
KERNELS_HD float power_of_two(float x) {
#if defined(__CUDA_ARCH__)
  return x < -126.5f ? 0.0f : exp2f(x);
#else
  const float whole = __builtin_rintf(x), part = x - whole;
  // minimax in [-1/2, 1/2], relative error 1e-7
  float power = 0.00132764698f;
  power = power * part + 0.00967554197f;
  power = power * part + 0.0555071329f;
  power = power * part + 0.240221197f;
  power = power * part + 0.693146967f;
  power = power * part + 1.0f;
  return power * power_of_whole(whole);
#endif
}

KERNELS_HD float reciprocal(float x) {
#if defined(__CUDA_ARCH__)
  return __fdividef(1.0f, x);
#else
  return 1.0f / x;
#endif
}

// |h| up to where its power of two is 0: beyond it an activation is 0 or the identity.
KERNELS_HD float magnitude(float h, float last) {
  const float a = fabsf(h);
  return a > last ? last : a;
}

// h times the share of a distribution that is below h, by the tail beyond a = |h| and the density there.
KERNELS_HD Activated from_tail(float h, float a, float tail, float density) {
  const float slope = tail - a * density;
  return {(h > 0.0f ? h : 0.0f) - a * tail, h < 0.0f ? slope : 1.0f - slope};
}

// h Phi(h), Phi the normal distribution (Hendrycks and Gimpel 2016, arXiv:1606.08415). Phi(-a) = exp(-a^2 / 2) t P(t)
// with t = 1 / (1 + 0.3 a), as Abramowitz and Stegun 7.1.26; P is minimax for a in [0, 13.5], relative error 1.3e-7.
KERNELS_HD Activated gelu(float h) {
  const float a = magnitude(h, 13.27f);
  const float power = power_of_two(a * a * (-0.5f * kLog2E));
  const float t = reciprocal(1.0f + 0.3f * a);
  float tail = 0.0359320080f;
  tail = tail * t - 0.158277024f;
  tail = tail * t + 0.208208181f;
  tail = tail * t - 0.055395132f;
  tail = tail * t + 0.129469798f;
  tail = tail * t + 0.0996373152f;
  tail = tail * t + 0.12079838f;
  tail = tail * t + 0.119626389f;
  return from_tail(h, a, tail * t * power, power * 0.398942280f);
}

// h sigmoid(u), u >= 0 at a = |h| and odd in h, du its derivative.
KERNELS_HD Activated sigmoid_gate(float h, float a, float u, float du) {
  const float power = power_of_two(u * -kLog2E);
  const float larger = reciprocal(1.0f + power), smaller = power * larger;
  return from_tail(h, a, smaller, smaller * larger * du);
}

template <Activation kKind>
KERNELS_HD Activated activate(float h) {
  if constexpr (kKind == Activation::kGelu) {
    return gelu(h);
  } else if constexpr (kKind == Activation::kGeluTanh) {
    // sigmoid(2 z) = (1 + tanh z) / 2, z = sqrt(2 / pi) (h + 0.044715 h^3)
    constexpr float kFactor = 1.59576912f, kCube = 0.0713548163f;
    const float a = magnitude(h, 10.03f), square = a * a;
    return sigmoid_gate(h, a, a * (kFactor + kCube * square), kFactor + 3.0f * kCube * square);
  } else {
    const float a = magnitude(h, 88.02f);
    return sigmoid_gate(h, a, a, 1.0f);
  }
}

}  // namespace kernels
