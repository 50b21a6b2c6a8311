// The CPU kernels of the activations.
#pragma once

#include "../common/activation.h"
#include "levels.h"

namespace kernels {

struct ActivationKernels {
  // Rows [first, last).
  void (*forward)(const ActivationForward& args, int64_t first, int64_t last);
  // Blocks [first, last) of rows: block b of n holds rows [b R / n, (b + 1) R / n), whatever the threads.
  void (*backward)(const ActivationBackward& args, int64_t first, int64_t last);
  // Columns [first, last) of the blocks' sums.
  void (*reduce)(const ActivationBackward& args, int64_t first, int64_t last);
};

KERNELS_LEVELS(ActivationKernels, activation_kernels)

}  // namespace kernels
