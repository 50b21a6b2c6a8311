// Softmax cross-entropy as torch operators. R rows, V columns.
#pragma once

#include "tensors.h"
#if defined(KERNELS_CPU)
#include "../cpu/cross_entropy.h"
#else
#include "../common/cross_entropy.h"

extern "C" {
int32_t kernels_cross_entropy_forward(const kernels::CrossEntropyForward* args, int64_t blocks, void* stream);
int32_t kernels_cross_entropy_backward(const kernels::CrossEntropyBackward* args, int64_t blocks, void* stream);
}
#endif

namespace kernels {

// Outputs that are not wanted are tensors without elements; the gradient may be the logits themselves.
constexpr const char* kCrossEntropyForward =
    "cross_entropy_forward(Tensor logits, Tensor labels, Tensor(a!) losses, Tensor(b!) maximum, Tensor(c!) total, "
    "Tensor(d!) right, Tensor(e!) gradient, float scale, int blocks) -> ()";
constexpr const char* kCrossEntropyBackward =
    "cross_entropy_backward(Tensor logits, Tensor labels, Tensor maximum, Tensor total, Tensor upstream, "
    "Tensor(a!) gradient, int blocks) -> ()";

inline const int64_t* labels_of(const Tensor& labels) {
  STD_TORCH_CHECK(labels.scalar_type() == ScalarType::Long, "kernels: labels must be int64");
  return static_cast<const int64_t*>(data_of(labels));
}

inline void cross_entropy_forward(const Tensor& logits, const Tensor& labels, Tensor losses, Tensor maximum,
                                  Tensor total, Tensor right, Tensor gradient, double scale,
                                  [[maybe_unused]] int64_t blocks) {
  CrossEntropyForward args{};
  args.logits = data_of(logits);
  args.labels = labels_of(labels);
  args.losses = static_cast<float*>(output_of(losses));
  args.maximum = static_cast<float*>(output_of(maximum));
  args.total = static_cast<float*>(output_of(total));
  args.right = static_cast<int32_t*>(output_of(right));
  args.gradient = output_of(gradient);
  args.rows = logits.size(0);
  args.width = logits.size(1);
  args.type = type_of(logits.scalar_type());
  args.scale = static_cast<float>(scale);
#if defined(KERNELS_CPU)
  torch::stable::parallel_for(0, args.rows, grain_of(args.width), [&](int64_t first, int64_t last) {
    cross_entropy_kernels().forward(args, first, last);
  });
#else
  check(kernels_cross_entropy_forward(&args, blocks, stream_of(logits)), "cross_entropy_forward");
#endif
}

inline void cross_entropy_backward(const Tensor& logits, const Tensor& labels, const Tensor& maximum,
                                   const Tensor& total, const Tensor& upstream, Tensor gradient,
                                   [[maybe_unused]] int64_t blocks) {
  CrossEntropyBackward args{};
  args.logits = data_of(logits);
  args.labels = labels_of(labels);
  args.maximum = static_cast<const float*>(data_of(maximum));
  args.total = static_cast<const float*>(data_of(total));
  args.upstream = static_cast<const float*>(data_of(upstream));
  args.gradient = output_of(gradient);
  args.rows = logits.size(0);
  args.width = logits.size(1);
  args.type = type_of(logits.scalar_type());
#if defined(KERNELS_CPU)
  torch::stable::parallel_for(0, args.rows, grain_of(args.width), [&](int64_t first, int64_t last) {
    cross_entropy_kernels().backward(args, first, last);
  });
#else
  check(kernels_cross_entropy_backward(&args, blocks, stream_of(logits)), "cross_entropy_backward");
#endif
}

}  // namespace kernels
