// The CPU kernels of the optimizers.
#pragma once

#include "../common/optimizer.h"
#include "levels.h"

namespace kernels {

struct OptimizerKernels {
  // Each works on elements [first, last) of a listed tensor, in one thread.
  double (*squared_norm)(const void* values, Type type, int64_t first, int64_t last);
  void (*adamw)(const Listed& item, const Adam& adam, Type gradient, Type copy, int64_t first, int64_t last);
  // Sums of squares of weights and updates go to sums[0] and sums[1].
  void (*lamb_moments)(const Listed& item, const Adam& adam, Type gradient, int64_t first, int64_t last, double* sums);
  void (*lamb_step)(const Listed& item, const Adam& adam, float ratio, int64_t first, int64_t last);
};

KERNELS_LEVELS(OptimizerKernels, optimizer_kernels)

}  // namespace kernels
