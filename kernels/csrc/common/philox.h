// Philox4x32-7 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), and dropout masks made of it.
//
// A mask is never stored: forward and backward draw it again from (seed, site, row, column), alike on every backend.
// One call gives eight 16-bit draws, for eight neighbouring columns; an element is dropped if its draw is below the
// threshold, so probabilities are multiples of 2^-16.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define KERNELS_HD __host__ __device__ __forceinline__
#else
#define KERNELS_HD inline __attribute__((always_inline))
#endif

namespace kernels {

constexpr int kDraws = 8;  // of one call
constexpr int kRounds = 7;
constexpr uint32_t kLevels = 1u << 16;

struct Draws {
  uint32_t word[4];

  // Draw i of 0 to 7: the low half of a word comes first.
  KERNELS_HD uint32_t at(int i) const { return (word[i >> 1] >> (16 * (i & 1))) & 0xffffu; }
};

struct Product {
  uint32_t high, low;
};

KERNELS_HD Product product(uint32_t a, uint32_t b) {
#if defined(__CUDA_ARCH__)
  return {__umulhi(a, b), a * b};  // one instruction; of a product of 64 bits ptxas makes two
#else
  const uint64_t wide = static_cast<uint64_t>(a) * b;
  return {static_cast<uint32_t>(wide >> 32), static_cast<uint32_t>(wide)};
#endif
}

// The draws of columns [8 group, 8 group + 8) of a row.
KERNELS_HD Draws philox(uint64_t seed, uint32_t site, uint64_t row, uint32_t group) {
  uint32_t c0 = group, c1 = static_cast<uint32_t>(row), c2 = static_cast<uint32_t>(row >> 32), c3 = site;
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < kRounds; ++round) {
    const Product p0 = product(0xD2511F53u, c0), p1 = product(0xCD9E8D57u, c2);
    c0 = p1.high ^ c1 ^ k0;
    c2 = p0.high ^ c3 ^ k1;
    c1 = p1.low;
    c3 = p0.low;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return Draws{{c0, c1, c2, c3}};
}

// What is kept is multiplied by this, so that expectations stay.
KERNELS_HD float keep_scale(uint32_t threshold) {
  return static_cast<float>(kLevels) / static_cast<float>(kLevels - threshold);
}

}  // namespace kernels
