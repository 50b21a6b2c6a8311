// The CPU kernels of attention.
#pragma once

#include "../common/attention.h"
#include "levels.h"

namespace kernels {

// A function works on units [first, last) of attention_units: a unit is what a query costs that sees one key. Who has the
// first unit of something does it as a whole and in the same way on any number of threads: in the forward pass a few
// blocks of queries of a head; in the backward pass all heads of a sequence that share keys, whose gradients they add to.
// So equal ranges are about equal work, as far as there are as many of these as threads.
struct AttentionKernels {
  void (*forward)(const AttentionForward& args, int64_t first, int64_t last);
  void (*backward)(const AttentionBackward& args, int64_t first, int64_t last);
  // Numbers [first, last) of the gradient of the bias, from the blocks' sums.
  void (*reduce)(const AttentionBackward& args, int64_t first, int64_t last);
};

KERNELS_LEVELS_BF16(AttentionKernels, attention_kernels)

constexpr int64_t kAttentionGrain = 1 << 14;  // units that are worth a thread

namespace {

// What a sequence costs with the heads of one head of keys: also its projections must be read and laid out.
inline int64_t attention_cost(int64_t length) { return length * (length + 32); }

// All units: of the sequences, and one for the filler.
inline int64_t attention_units(const Attention& in) {
  int64_t units = 0;
  for (int64_t s = 0; s < in.sequences; ++s) units += attention_cost(in.boundaries[s + 1] - in.boundaries[s]);
  return units * in.kv_heads + 1;
}

}  // namespace
}  // namespace kernels
