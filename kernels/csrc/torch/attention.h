// Packed attention as torch operators. N tokens, S sequences, H heads of queries, G of keys and values, K numbers in a
// head: qkv is [N, H + 2 G, K].
#pragma once

#include "tensors.h"
#if defined(KERNELS_CPU)
#include "../cpu/attention.h"
#else
#include "../common/attention.h"

extern "C" {
int32_t kernels_attention_forward(const kernels::AttentionForward* args, void* stream);
int32_t kernels_attention_backward(const kernels::AttentionBackward* args, void* stream);
}
#endif

namespace kernels {

constexpr const char* kAttentionForward =
    "attention_forward(Tensor qkv, Tensor boundaries, Tensor? prefix, Tensor? bias, Tensor(a!) out, Tensor(b!) lse, "
    "int longest, int mask, float scale, int threshold, Tensor? seed, int site) -> ()";
constexpr const char* kAttentionBackward =
    "attention_backward(Tensor dout, Tensor qkv, Tensor out, Tensor lse, Tensor boundaries, Tensor? prefix, "
    "Tensor? bias, Tensor(a!) dqkv, Tensor(b!) dbias, Tensor(c!) delta, Tensor(d!) dq, Tensor(e!) partial, int longest, "
    "int mask, float scale, int threshold, Tensor? seed, int site) -> ()";

inline Attention attention_of(const Tensor& qkv, const Tensor& boundaries, const std::optional<Tensor>& prefix,
                              const std::optional<Tensor>& bias, int64_t heads, int64_t longest, int64_t mask,
                              double scale, int64_t threshold, const std::optional<Tensor>& seed, int64_t site) {
  Attention in{};
  in.qkv = data_of(qkv);
  in.boundaries = static_cast<const int32_t*>(data_of(boundaries));
  in.prefix = static_cast<const int32_t*>(data_of(prefix));
  in.bias = static_cast<const float*>(data_of(bias));
  in.tokens = qkv.size(0);
  in.sequences = boundaries.size(0) - 1;
  in.heads = heads;
  in.kv_heads = (qkv.size(1) - heads) / 2;
  in.size = qkv.size(2);
  in.longest = longest;
  in.type = type_of(qkv.scalar_type());
  in.mask = static_cast<Mask>(mask);
  in.scale = static_cast<float>(scale);
  in.dropout = dropout_of(threshold, seed, site);
  return in;
}

inline void attention_forward(const Tensor& qkv, const Tensor& boundaries, const std::optional<Tensor>& prefix,
                              const std::optional<Tensor>& bias, Tensor out, Tensor lse, int64_t longest, int64_t mask,
                              double scale, int64_t threshold, const std::optional<Tensor>& seed, int64_t site) {
  AttentionForward args{};
  args.in = attention_of(qkv, boundaries, prefix, bias, lse.size(0), longest, mask, scale, threshold, seed, site);
  args.out = output_of(out);
  args.lse = static_cast<float*>(output_of(lse));
#if defined(KERNELS_CPU)
  torch::stable::parallel_for(0, attention_units(args.in), kAttentionGrain, [&](int64_t first, int64_t last) {
    attention_kernels().forward(args, first, last);
  });
#else
  check(kernels_attention_forward(&args, stream_of(qkv)), "attention_forward");
#endif
}

// dbias has no elements where it is not wanted; neither have workspaces.
inline void attention_backward(const Tensor& dout, const Tensor& qkv, const Tensor& out, const Tensor& lse,
                               const Tensor& boundaries, const std::optional<Tensor>& prefix,
                               const std::optional<Tensor>& bias, Tensor dqkv, Tensor dbias, Tensor delta, Tensor dq,
                               Tensor partial, int64_t longest, int64_t mask, double scale, int64_t threshold,
                               const std::optional<Tensor>& seed, int64_t site) {
  AttentionBackward args{};
  args.in = attention_of(qkv, boundaries, prefix, bias, lse.size(0), longest, mask, scale, threshold, seed, site);
  args.out = data_of(out);
  args.lse = static_cast<const float*>(data_of(lse));
  args.dout = data_of(dout);
  args.dqkv = output_of(dqkv);
  args.delta = static_cast<float*>(output_of(delta));
  args.dq = static_cast<float*>(output_of(dq));
  args.dbias = static_cast<float*>(output_of(dbias));
  args.partial = static_cast<float*>(output_of(partial));
  args.blocks = partial.size(0);
#if defined(KERNELS_CPU)
  torch::stable::parallel_for(0, attention_units(args.in), kAttentionGrain, [&](int64_t first, int64_t last) {
    attention_kernels().backward(args, first, last);
  });
  torch::stable::parallel_for(0, dbias.numel(), kGrainElements, [&](int64_t first, int64_t last) {
    attention_kernels().reduce(args, first, last);
  });
#else
  check(kernels_attention_backward(&args, stream_of(qkv)), "attention_backward");
#endif
}

}  // namespace kernels
