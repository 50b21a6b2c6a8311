// The embeddings as torch operators. N tokens, D columns.
#pragma once

#include "tensors.h"
#if defined(KERNELS_CPU)
#include <sys/mman.h>

#include <cstring>

#include "../cpu/embedding.h"
#else
#include "../common/embedding.h"

extern "C" {
int32_t kernels_embedding_forward(const kernels::EmbeddingForward* args, int64_t blocks, void* stream);
int32_t kernels_embedding_backward(const kernels::EmbeddingBackward* args, void* stream);
int32_t kernels_embedding_runs(const kernels::EmbeddingRuns* args, void* stream);
}
#endif

namespace kernels {

constexpr const char* kEmbeddingForward =
    "embedding_forward(Tensor tokens, Tensor positions, Tensor? segments, Tensor word, Tensor position, "
    "Tensor? segment, Tensor? weight, Tensor? shift, Tensor(a!) y, Tensor(b!) mean, Tensor(c!) rstd, float eps, "
    "int threshold, Tensor? seed, int site, int blocks) -> ()";
constexpr const char* kEmbeddingBackward =
    "embedding_backward(Tensor dy, Tensor tokens, Tensor positions, Tensor? segments, Tensor word, Tensor position, "
    "Tensor? segment, Tensor weight, Tensor mean, Tensor rstd, Tensor(a!) dz, Tensor(b!) dweight, Tensor(c!) dshift, "
    "Tensor(d!) partial, int threshold, Tensor? seed, int site) -> ()";
constexpr const char* kEmbeddingRuns =
    "embedding_runs(Tensor dz, Tensor ids, Tensor order, Tensor(a!) partial, Tensor(b!) dword, Tensor(c!) dposition, "
    "Tensor(d!) dsegment, int length) -> ()";

inline const int64_t* ids_of(const Tensor& ids) {
  STD_TORCH_CHECK(ids.scalar_type() == ScalarType::Long, "kernels: ids must be int64");
  return static_cast<const int64_t*>(data_of(ids));
}

inline EmbeddingTables tables_of(const Tensor& tokens, const Tensor& positions, const std::optional<Tensor>& segments,
                                 const Tensor& word, const Tensor& position, const std::optional<Tensor>& segment) {
  return EmbeddingTables{{ids_of(tokens), ids_of(positions), segments.has_value() ? ids_of(*segments) : nullptr},
                         {data_of(word), data_of(position), data_of(segment)},
                         {word.size(0), position.size(0), segment.has_value() ? segment->size(0) : 1}};
}

inline void embedding_forward(const Tensor& tokens, const Tensor& positions, const std::optional<Tensor>& segments,
                              const Tensor& word, const Tensor& position, const std::optional<Tensor>& segment,
                              const std::optional<Tensor>& weight, const std::optional<Tensor>& shift, Tensor y,
                              Tensor mean, Tensor rstd, double eps, int64_t threshold,
                              const std::optional<Tensor>& seed, int64_t site, [[maybe_unused]] int64_t blocks) {
  EmbeddingForward args{};
  args.from = tables_of(tokens, positions, segments, word, position, segment);
  args.weight = data_of(weight);
  args.shift = data_of(shift);
  args.y = output_of(y);
  args.mean = static_cast<float*>(output_of(mean));
  args.rstd = static_cast<float*>(output_of(rstd));
  args.count = tokens.numel();
  args.width = width_of(word);
  args.type = type_of(word.scalar_type());
  args.parameter = type_of((weight.has_value() ? *weight : word).scalar_type());
  args.eps = static_cast<float>(eps);
  args.dropout = dropout_of(threshold, seed, site);
#if defined(KERNELS_CPU)
  torch::stable::parallel_for(0, args.count, grain_of(args.width),
                              [&](int64_t first, int64_t last) { embedding_kernels().forward(args, first, last); });
#else
  check(kernels_embedding_forward(&args, blocks, stream_of(word)), "embedding_forward");
#endif
}

inline void embedding_backward(const Tensor& dy, const Tensor& tokens, const Tensor& positions,
                               const std::optional<Tensor>& segments, const Tensor& word, const Tensor& position,
                               const std::optional<Tensor>& segment, const Tensor& weight, const Tensor& mean,
                               const Tensor& rstd, Tensor dz, Tensor dweight, Tensor dshift, Tensor partial,
                               int64_t threshold, const std::optional<Tensor>& seed, int64_t site) {
  EmbeddingBackward args{};
  args.from = tables_of(tokens, positions, segments, word, position, segment);
  args.dy = data_of(dy);
  args.weight = data_of(weight);
  args.mean = static_cast<const float*>(data_of(mean));
  args.rstd = static_cast<const float*>(data_of(rstd));
  args.dz = output_of(dz);
  args.dweight = static_cast<float*>(output_of(dweight));
  args.dshift = static_cast<float*>(output_of(dshift));
  args.partial = static_cast<float*>(output_of(partial));
  args.count = tokens.numel();
  args.width = width_of(word);
  args.blocks = partial.size(0);
  args.type = type_of(word.scalar_type());
  args.parameter = type_of(weight.scalar_type());
  args.dropout = dropout_of(threshold, seed, site);
#if defined(KERNELS_CPU)
  torch::stable::parallel_for(0, args.blocks, 1,
                              [&](int64_t first, int64_t last) { embedding_kernels().backward(args, first, last); });
  torch::stable::parallel_for(0, args.width, kGrainElements,
                              [&](int64_t first, int64_t last) { embedding_kernels().reduce(args, first, last); });
#else
  check(kernels_embedding_backward(&args, stream_of(word)), "embedding_backward");
#endif
}

// The gradients of the tables; those that are not wanted are tensors without elements, the others are zero.
inline void embedding_runs(const Tensor& dz, const Tensor& ids, const Tensor& order, Tensor partial, Tensor dword,
                           Tensor dposition, Tensor dsegment, int64_t length) {
  EmbeddingRuns args{};
  args.dz = data_of(dz);
  args.ids = ids_of(ids);
  args.order = ids_of(order);
  const Tensor* const out[kTables] = {&dword, &dposition, &dsegment};
  for (int table = 0; table < kTables; ++table) {
    args.out[table] = output_of(*out[table]);
    args.rows[table] = out[table]->size(0);
  }
  args.partial = static_cast<float*>(output_of(partial));
  args.count = dz.size(0);
  args.width = width_of(dz);
  args.pieces = partial.size(1);
  args.length = length;
  args.type = type_of(dz.scalar_type());
#if defined(KERNELS_CPU)
  const int64_t pieces = kTables * args.pieces;
  torch::stable::parallel_for(0, pieces, 1, [&](int64_t first, int64_t last) {
    embedding_kernels().sum_pieces(args, first, last);
  });
  torch::stable::parallel_for(0, pieces, kTables * grain_of(args.width), [&](int64_t first, int64_t last) {
    embedding_kernels().join_pieces(args, first, last);
  });
#else
  check(kernels_embedding_runs(&args, stream_of(dz)), "embedding_runs");
#endif
}

#if defined(KERNELS_CPU)

constexpr const char* kZero = "zero(Tensor(a!) out) -> ()";
constexpr uintptr_t kHugePage = 2 << 20;
constexpr int64_t kMappedBytes = 32 << 20;  // from here on malloc takes fresh pages of the system each time

// Fills a tensor with zeros. Fresh memory is asked for in huge pages first: a page fault for each 4 KiB takes more time
// than the zeros.
inline void zero(Tensor out) {
  char* const begin = static_cast<char*>(output_of(out));
  const int64_t size = out.numel() * static_cast<int64_t>(out.element_size());
  if (size >= kMappedBytes) {
    const uintptr_t first = (reinterpret_cast<uintptr_t>(begin) + kHugePage - 1) / kHugePage * kHugePage;
    const uintptr_t last = (reinterpret_cast<uintptr_t>(begin) + size) / kHugePage * kHugePage;
#if defined(MADV_HUGEPAGE)
    (void)madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);  // without them it is only slower
#endif
  }
  torch::stable::parallel_for(0, size, kHugePage, [&](int64_t a, int64_t b) { std::memset(begin + a, 0, b - a); });
}

#endif

}  // namespace kernels
