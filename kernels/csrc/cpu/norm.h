// The CPU kernels of the norms.
#pragma once

#include "../common/norm.h"
#include "levels.h"

namespace kernels {

struct NormKernels {
  // Rows [first, last).
  void (*forward)(const NormForward& args, int64_t first, int64_t last);
  // Blocks [first, last) of rows: block b of n holds rows [b R / n, (b + 1) R / n), so the sums do not depend on threads.
  void (*backward)(const NormBackward& args, int64_t first, int64_t last);
  // Columns [first, last) of the blocks' sums.
  void (*reduce)(const NormBackward& args, int64_t first, int64_t last);
  // Rows [first, last).
  void (*dropout_add)(const DropoutAdd& args, int64_t first, int64_t last);
};

KERNELS_LEVELS(NormKernels, norm_kernels)

}  // namespace kernels
