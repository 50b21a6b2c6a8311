// Powers of two with whole exponents, for loops that a compiler vectorizes.
#pragma once

#include <cstdint>
#include <cstring>

#include "philox.h"

namespace kernels {

// 2^n for a whole number n from -126 to 127, 0 for -127. A float beside 1.5 2^23 ends in the bits of an integer: NaN is
// not converted to one, which C++ leaves open, and gives anything.
KERNELS_HD float power_of_whole(float n) {
  const float shifted = n + 12582912.0f;
  uint32_t bits;
  std::memcpy(&bits, &shifted, sizeof(bits));
  bits = (bits << 23) + 0x3f800000u;
  float power;
  std::memcpy(&power, &bits, sizeof(power));
  return power;
}

}  // namespace kernels
