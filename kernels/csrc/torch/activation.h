// The activations as torch operators. R rows, W columns of the result: x is [..., W], or [..., 2 W] where gated.
#pragma once

#include "tensors.h"
#if defined(KERNELS_CPU)
#include "../cpu/activation.h"
#else
#include "../common/activation.h"

extern "C" {
int32_t kernels_activation_forward(const kernels::ActivationForward* args, int64_t blocks, void* stream);
int32_t kernels_activation_backward(const kernels::ActivationBackward* args, void* stream);
}
#endif

namespace kernels {

constexpr const char* kActivationForward =
    "activation_forward(Tensor x, Tensor? bias, Tensor(a!) y, int kind, bool gated, int blocks) -> ()";
constexpr const char* kActivationBackward =
    "activation_backward(Tensor dy, Tensor x, Tensor? bias, Tensor(a!) dx, Tensor(b!) dbias, Tensor(c!) partial, "
    "int kind, bool gated) -> ()";

inline Type parameter_of(const std::optional<Tensor>& parameter) {
  return parameter.has_value() ? type_of(parameter->scalar_type()) : Type::kFloat32;
}

inline void activation_forward(const Tensor& x, const std::optional<Tensor>& bias, Tensor y, int64_t kind, bool gated,
                               [[maybe_unused]] int64_t blocks) {
  const ActivationForward args{data_of(x),  data_of(bias),           output_of(y),       rows_of(y),
                               width_of(y), type_of(x.scalar_type()), parameter_of(bias), static_cast<Activation>(kind),
                               gated};
#if defined(KERNELS_CPU)
  torch::stable::parallel_for(0, args.rows, grain_of(args.width),
                              [&](int64_t first, int64_t last) { activation_kernels().forward(args, first, last); });
#else
  check(kernels_activation_forward(&args, blocks, stream_of(x)), "activation_forward");
#endif
}

// dbias and partial [blocks, C] have no elements where dbias is not wanted.
inline void activation_backward(const Tensor& dy, const Tensor& x, const std::optional<Tensor>& bias, Tensor dx,
                                Tensor dbias, Tensor partial, int64_t kind, bool gated) {
  const ActivationBackward args{data_of(dy),
                                data_of(x),
                                data_of(bias),
                                output_of(dx),
                                static_cast<float*>(output_of(dbias)),
                                static_cast<float*>(output_of(partial)),
                                rows_of(dy),
                                width_of(dy),
                                partial.size(0),
                                type_of(x.scalar_type()),
                                parameter_of(bias),
                                static_cast<Activation>(kind),
                                gated};
#if defined(KERNELS_CPU)
  torch::stable::parallel_for(0, args.blocks, 1,
                              [&](int64_t first, int64_t last) { activation_kernels().backward(args, first, last); });
  torch::stable::parallel_for(0, dbias.numel(), kGrainElements,
                              [&](int64_t first, int64_t last) { activation_kernels().reduce(args, first, last); });
#else
  check(kernels_activation_backward(&args, stream_of(x)), "activation_backward");
#endif
}

}  // namespace kernels
