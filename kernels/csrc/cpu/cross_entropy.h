// The CPU kernels of softmax cross-entropy.
#pragma once

#include "../common/cross_entropy.h"
#include "levels.h"

namespace kernels {

struct CrossEntropyKernels {
  // Rows [first, last).
  void (*forward)(const CrossEntropyForward& args, int64_t first, int64_t last);
  // Rows [first, last).
  void (*backward)(const CrossEntropyBackward& args, int64_t first, int64_t last);
};

KERNELS_LEVELS(CrossEntropyKernels, cross_entropy_kernels)

}  // namespace kernels
