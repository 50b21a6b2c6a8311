// The arguments of the optimizers: lists of tensors, or of pieces of them, cut into chunks.
#pragma once

#include "api.h"

namespace kernels {

constexpr int64_t kChunk = 16 * 1024;  // elements: fixed, so that sums have the same bits every time
constexpr int64_t kAligned = 8;        // chunks begin at multiples of it, where 16 bytes of any type begin

// Elements [begin, end) of a gradient and of what the optimizer keeps of the same parameter.
struct Listed {
  const void* gradient;
  float* weight;
  float* first;   // moment
  float* second;  // moment
  void* copy;     // of the weights in 16 bits, or null
  int64_t begin, end;
};

inline int64_t first_of_chunks(const Listed& listed) { return listed.begin / kAligned * kAligned; }

inline int64_t chunks_of(const Listed& listed) {
  return listed.begin < listed.end ? (listed.end - first_of_chunks(listed) + kChunk - 1) / kChunk : 0;
}

// What a launch takes: as many as fit into the 4 KiB of a kernel's arguments.
constexpr int kListed = 64;

struct List {
  Listed item[kListed];
  int32_t first_chunk[kListed + 1];  // of each item, counted through the list; then the number of all chunks
  int32_t items;
};

// Adam with bias correction: m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2;  its direction is
// m * scale1 / (sqrt(v) * scale2 + eps). Gradients are multiplied by *factor before.
struct Adam {
  float beta1, rest1;  // 1 - beta1
  float beta2, rest2;
  float scale1;  // 1 / (1 - beta1^step)
  float scale2;  // 1 / sqrt(1 - beta2^step)
  float eps, decay, rate;
  const float* factor;  // in the memory of the tensors, or null
};

// partial[chunk] = the sum of squares of its gradients.
struct SquaredNorm {
  List list;
  Type gradient;
  double* partial;
};

// w = (1 - rate decay) w - rate direction, and its copy.
struct AdamWStep {
  List list;
  Adam adam;
  Type gradient, copy;
};

// Moments; partial[chunk] = the sums of squares of w and of u = direction + decay w.
struct LambMoments {
  List list;
  Adam adam;
  Type gradient;
  double* partial;  // [chunks, 2]
};

// w = w - rate ratio[item] u.
struct LambStep {
  List list;
  Adam adam;
  const float* ratio;  // [items]
};

}  // namespace kernels
