// The norms as torch operators. R rows, W columns: x is [..., W], R of them.
#pragma once

#include "tensors.h"
#if defined(KERNELS_CPU)
#include "../cpu/norm.h"
#else
#include "../common/norm.h"

extern "C" {
int32_t kernels_norm_forward(const kernels::NormForward* args, int64_t blocks, void* stream);
int32_t kernels_norm_backward(const kernels::NormBackward* args, void* stream);
int32_t kernels_dropout_add(const kernels::DropoutAdd* args, int64_t blocks, void* stream);
}
#endif

namespace kernels {

constexpr const char* kNormForward =
    "norm_forward(Tensor x, Tensor? bias, Tensor? residual, Tensor weight, Tensor? shift, Tensor(a!) z, Tensor(b!) y, "
    "Tensor(c!) mean, Tensor(d!) rstd, float eps, int threshold, Tensor? seed, int site, int blocks) -> ()";
constexpr const char* kNormBackward =
    "norm_backward(Tensor dy, Tensor? dz, Tensor z, Tensor weight, Tensor mean, Tensor rstd, Tensor(a!) dx, "
    "Tensor(b!) dresidual, Tensor(c!) dweight, Tensor(d!) dshift, Tensor(e!) dbias, Tensor(f!) partial, int threshold, "
    "Tensor? seed, int site) -> ()";

constexpr const char* kDropoutAdd =
    "dropout_add(Tensor x, Tensor? residual, Tensor(a!) out, int threshold, Tensor? seed, int site, int blocks) -> ()";

// Outputs that are not wanted are tensors without elements.
inline NormForward forward_args(const Tensor& x, const std::optional<Tensor>& bias,
                                const std::optional<Tensor>& residual, const Tensor& weight,
                                const std::optional<Tensor>& shift, const Tensor& z, const Tensor& y,
                                const Tensor& mean, const Tensor& rstd, double eps, int64_t threshold,
                                const std::optional<Tensor>& seed, int64_t site) {
  NormForward args{};
  args.x = data_of(x);
  args.bias = data_of(bias);
  args.residual = data_of(residual);
  args.weight = data_of(weight);
  args.shift = data_of(shift);
  args.z = output_of(z);
  args.y = output_of(y);
  args.mean = static_cast<float*>(output_of(mean));
  args.rstd = static_cast<float*>(output_of(rstd));
  args.rows = rows_of(x);
  args.width = width_of(x);
  args.input = type_of(x.scalar_type());
  args.output = type_of(y.scalar_type());
  args.parameter = type_of(weight.scalar_type());
  args.eps = static_cast<float>(eps);
  args.dropout = dropout_of(threshold, seed, site);
  return args;
}

inline NormBackward backward_args(const Tensor& dy, const std::optional<Tensor>& dz, const Tensor& z,
                                  const Tensor& weight, const Tensor& mean, const Tensor& rstd, const Tensor& dx,
                                  const Tensor& dresidual, const Tensor& dweight, const Tensor& dshift,
                                  const Tensor& dbias, const Tensor& partial, int64_t threshold,
                                  const std::optional<Tensor>& seed, int64_t site) {
  NormBackward args{};
  args.dy = data_of(dy);
  args.dz = data_of(dz);
  args.z = data_of(z);
  args.weight = data_of(weight);
  args.mean = static_cast<const float*>(output_of(mean));
  args.rstd = static_cast<const float*>(output_of(rstd));
  args.dx = output_of(dx);
  args.dresidual = output_of(dresidual);
  args.dweight = static_cast<float*>(output_of(dweight));
  args.dshift = static_cast<float*>(output_of(dshift));
  args.dbias = static_cast<float*>(output_of(dbias));
  args.partial = static_cast<float*>(output_of(partial));
  args.rows = rows_of(z);
  args.width = width_of(z);
  args.blocks = partial.size(0);
  args.input = type_of(z.scalar_type());
  args.output = type_of(dy.scalar_type());
  args.parameter = type_of(weight.scalar_type());
  args.dropout = dropout_of(threshold, seed, site);
  return args;
}

inline void norm_forward(const Tensor& x, const std::optional<Tensor>& bias, const std::optional<Tensor>& residual,
                         const Tensor& weight, const std::optional<Tensor>& shift, Tensor z, Tensor y, Tensor mean,
                         Tensor rstd, double eps, int64_t threshold, const std::optional<Tensor>& seed, int64_t site,
                         [[maybe_unused]] int64_t blocks) {
  const NormForward args =
      forward_args(x, bias, residual, weight, shift, z, y, mean, rstd, eps, threshold, seed, site);
#if defined(KERNELS_CPU)
  torch::stable::parallel_for(0, args.rows, grain_of(args.width),
                              [&](int64_t first, int64_t last) { norm_kernels().forward(args, first, last); });
#else
  check(kernels_norm_forward(&args, blocks, stream_of(x)), "norm_forward");
#endif
}

inline void norm_backward(const Tensor& dy, const std::optional<Tensor>& dz, const Tensor& z, const Tensor& weight,
                          const Tensor& mean, const Tensor& rstd, Tensor dx, Tensor dresidual, Tensor dweight,
                          Tensor dshift, Tensor dbias, Tensor partial, int64_t threshold,
                          const std::optional<Tensor>& seed, int64_t site) {
  const NormBackward args = backward_args(dy, dz, z, weight, mean, rstd, dx, dresidual, dweight, dshift, dbias,
                                          partial, threshold, seed, site);
#if defined(KERNELS_CPU)
  torch::stable::parallel_for(0, args.blocks, 1,
                              [&](int64_t first, int64_t last) { norm_kernels().backward(args, first, last); });
  torch::stable::parallel_for(0, args.width, kGrainElements,
                              [&](int64_t first, int64_t last) { norm_kernels().reduce(args, first, last); });
#else
  check(kernels_norm_backward(&args, stream_of(z)), "norm_backward");
#endif
}

inline void dropout_add(const Tensor& x, const std::optional<Tensor>& residual, Tensor out, int64_t threshold,
                        const std::optional<Tensor>& seed, int64_t site, [[maybe_unused]] int64_t blocks) {
  const DropoutAdd args{data_of(x), data_of(residual), output_of(out), rows_of(x), width_of(x),
                        type_of(x.scalar_type()), dropout_of(threshold, seed, site)};
#if defined(KERNELS_CPU)
  torch::stable::parallel_for(0, args.rows, grain_of(args.width),
                              [&](int64_t first, int64_t last) { norm_kernels().dropout_add(args, first, last); });
#else
  check(kernels_dropout_add(&args, blocks, stream_of(x)), "dropout_add");
#endif
}

}  // namespace kernels
