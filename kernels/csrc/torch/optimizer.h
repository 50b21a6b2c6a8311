// The optimizers as torch operators over lists of tensors. A piece is three numbers: which tensor of the lists, its
// first element, and its size.
#pragma once

#include "tensors.h"
#if defined(KERNELS_CPU)
#include "../cpu/optimizer.h"
#else
#include "../common/optimizer.h"

extern "C" {
int32_t kernels_squared_norm(const kernels::SquaredNorm* args, void* stream);
int32_t kernels_sum_chunks(const double* partial, int64_t count, double* out, void* stream);
int32_t kernels_adamw(const kernels::AdamWStep* args, void* stream);
int32_t kernels_lamb_moments(const kernels::LambMoments* args, double* out, void* stream);
int32_t kernels_lamb_step(const kernels::LambStep* args, void* stream);
}
#endif

#include <cmath>
#include <vector>

namespace kernels {

using Tensors = std::vector<Tensor>;

constexpr const char* kSquaredNorm = "squared_norm(Tensor[] gradients, Tensor(a!) partial, Tensor(b!) out) -> ()";
constexpr const char* kAdamW =
    "adamw(Tensor[] gradients, Tensor(a!)[] weights, Tensor(b!)[] first, Tensor(c!)[] second, Tensor(d!)[] copies, "
    "Tensor? factor, float rate, float beta1, float beta2, float eps, float decay, int step) -> ()";
constexpr const char* kLambMoments =
    "lamb_moments(Tensor[] gradients, Tensor[] weights, Tensor(a!)[] first, Tensor(b!)[] second, int[] pieces, "
    "Tensor? factor, float beta1, float beta2, float eps, float decay, int step, Tensor(c!) partial, Tensor(d!) out) "
    "-> ()";
constexpr const char* kLambStep =
    "lamb_step(Tensor(a!)[] weights, Tensor[] first, Tensor[] second, int[] pieces, Tensor ratio, float rate, "
    "float beta1, float beta2, float eps, float decay, int step) -> ()";

inline Adam adam_of(const std::optional<Tensor>& factor, double rate, double beta1, double beta2, double eps,
                    double decay, int64_t step) {
  const double correction1 = 1.0 - std::pow(beta1, step), correction2 = 1.0 - std::pow(beta2, step);
  Adam adam{};
  adam.beta1 = static_cast<float>(beta1);
  adam.rest1 = static_cast<float>(1.0 - beta1);
  adam.beta2 = static_cast<float>(beta2);
  adam.rest2 = static_cast<float>(1.0 - beta2);
  adam.scale1 = static_cast<float>(1.0 / correction1);
  adam.scale2 = static_cast<float>(1.0 / std::sqrt(correction2));
  adam.eps = static_cast<float>(eps);
  adam.decay = static_cast<float>(decay);
  adam.rate = static_cast<float>(rate);
  adam.factor = static_cast<const float*>(data_of(factor));
  return adam;
}

// fp32 [size], as all that the optimizer keeps.
inline float* kept(const Tensor& tensor, int64_t size) {
  STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Float && tensor.numel() == size,
                  "kernels: weights and moments must be float32, of the size of their gradients");
  return static_cast<float*>(const_cast<void*>(data_of(tensor)));
}

// The tensors of the lists; lists that an operator does not have are empty.
inline std::vector<Listed> listed(const Tensors& gradients, const Tensors& weights, const Tensors& first,
                                  const Tensors& second, const Tensors& copies) {
  const size_t count = std::max(gradients.size(), weights.size());
  for (const Tensors* each : {&gradients, &weights, &first, &second, &copies}) {
    STD_TORCH_CHECK(each->empty() || each->size() == count, "kernels: lists must be equally long");
  }
  std::vector<Listed> items(count);
  for (size_t i = 0; i < count; ++i) {
    Listed& item = items[i];
    item.end = (gradients.empty() ? weights : gradients)[i].numel();
    if (!gradients.empty()) item.gradient = data_of(gradients[i]);
    if (!weights.empty()) item.weight = kept(weights[i], item.end);
    if (!first.empty()) item.first = kept(first[i], item.end);
    if (!second.empty()) item.second = kept(second[i], item.end);
    if (!copies.empty()) {
      STD_TORCH_CHECK(copies[i].numel() == item.end, "kernels: copies must be of the size of the weights");
      item.copy = const_cast<void*>(data_of(copies[i]));
    }
  }
  return items;
}

inline std::vector<Listed> cut(const std::vector<Listed>& whole, const std::vector<int64_t>& pieces) {
  std::vector<Listed> items(pieces.size() / 3);
  for (size_t i = 0; i < items.size(); ++i) {
    const int64_t number = pieces[3 * i], begin = pieces[3 * i + 1], size = pieces[3 * i + 2];
    STD_TORCH_CHECK(number >= 0 && number < static_cast<int64_t>(whole.size()) && begin >= 0 && size >= 0 &&
                        begin + size <= whole[number].end,
                    "kernels: a piece is not in its tensor");
    items[i] = whole[number];
    items[i].begin = begin;
    items[i].end = begin + size;
  }
  return items;
}

// All of a list must be of one type, else its launches would be many.
inline Type type_of_all(const Tensors& tensors) {
  for (const Tensor& each : tensors) {
    STD_TORCH_CHECK(each.scalar_type() == tensors[0].scalar_type(), "kernels: a list must be of one type");
  }
  return tensors.empty() ? Type::kFloat32 : type_of(tensors[0].scalar_type());
}

inline int64_t chunks_of(const std::vector<Listed>& items) {
  int64_t count = 0;
  for (const Listed& item : items) count += chunks_of(item);
  return count;
}

// Where sums go: fp64, with room for all chunks.
inline double* sums_of(const Tensor& tensor, int64_t needed) {
  STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Double && tensor.numel() >= needed,
                  "kernels: sums must be float64, with room for all chunks");
  return static_cast<double*>(const_cast<void*>(data_of(tensor)));
}

#if defined(KERNELS_CPU)

constexpr int64_t kGrainChunks = 4;  // of a thread at least

// Calls function(item, chunk, first element, last element + 1) for all chunks, in several threads.
template <class Function>
void for_chunks(const std::vector<Listed>& items, Function function) {
  std::vector<int64_t> first_chunk(items.size() + 1, 0);
  for (size_t i = 0; i < items.size(); ++i) first_chunk[i + 1] = first_chunk[i] + chunks_of(items[i]);
  torch::stable::parallel_for(0, first_chunk.back(), kGrainChunks, [&](int64_t first, int64_t last) {
    size_t at = std::upper_bound(first_chunk.begin(), first_chunk.end(), first) - first_chunk.begin() - 1;
    for (int64_t chunk = first; chunk < last; ++chunk) {
      while (chunk >= first_chunk[at + 1]) ++at;
      const Listed& item = items[at];
      const int64_t from = first_of_chunks(item) + (chunk - first_chunk[at]) * kChunk;
      function(at, chunk, std::max(from, item.begin), std::min(from + kChunk, item.end));
    }
  });
}

#else

// Calls function(list, its first item, its first chunk) for as many lists as the items need.
template <class Function>
void for_lists(const std::vector<Listed>& items, Function function) {
  int64_t chunk = 0;
  for (size_t begin = 0; begin < items.size(); begin += kListed) {
    List list{};
    list.items = static_cast<int32_t>(std::min<size_t>(kListed, items.size() - begin));
    for (int32_t i = 0; i < list.items; ++i) {
      list.item[i] = items[begin + i];
      list.first_chunk[i + 1] = list.first_chunk[i] + static_cast<int32_t>(chunks_of(items[begin + i]));
    }
    function(list, begin, chunk);
    chunk += list.first_chunk[list.items];
  }
}

#endif

inline void squared_norm(const Tensors& gradients, Tensor partial, Tensor out) {
  const std::vector<Listed> items = listed(gradients, {}, {}, {}, {});
  const Type type = type_of_all(gradients);
  const int64_t count = chunks_of(items);
  double *sums = sums_of(partial, count), *total = sums_of(out, 1);
#if defined(KERNELS_CPU)
  for_chunks(items, [&](size_t at, int64_t chunk, int64_t first, int64_t last) {
    sums[chunk] = optimizer_kernels().squared_norm(items[at].gradient, type, first, last);
  });
  *total = 0.0;
  for (int64_t chunk = 0; chunk < count; ++chunk) *total += sums[chunk];
#else
  for_lists(items, [&](const List& list, size_t, int64_t chunk) {
    const SquaredNorm args{list, type, sums + chunk};
    check(kernels_squared_norm(&args, stream_of(out)), "squared_norm");
  });
  check(kernels_sum_chunks(sums, count, total, stream_of(out)), "sum_chunks");
#endif
}

inline void adamw(const Tensors& gradients, const Tensors& weights, const Tensors& first, const Tensors& second,
                  const Tensors& copies, const std::optional<Tensor>& factor, double rate, double beta1, double beta2,
                  double eps, double decay, int64_t step) {
  const std::vector<Listed> items = listed(gradients, weights, first, second, copies);
  const Adam adam = adam_of(factor, rate, beta1, beta2, eps, decay, step);
  const Type type = type_of_all(gradients), copy = type_of_all(copies);
#if defined(KERNELS_CPU)
  for_chunks(items, [&](size_t at, int64_t, int64_t from, int64_t to) {
    optimizer_kernels().adamw(items[at], adam, type, copy, from, to);
  });
#else
  for_lists(items, [&](const List& list, size_t, int64_t) {
    const AdamWStep args{list, adam, type, copy};
    check(kernels_adamw(&args, stream_of(weights[0])), "adamw");
  });
#endif
}

inline void lamb_moments(const Tensors& gradients, const Tensors& weights, const Tensors& first, const Tensors& second,
                         const std::vector<int64_t>& pieces, const std::optional<Tensor>& factor, double beta1,
                         double beta2, double eps, double decay, int64_t step, Tensor partial, Tensor out) {
  const std::vector<Listed> items = cut(listed(gradients, weights, first, second, {}), pieces);
  const Adam adam = adam_of(factor, 0.0, beta1, beta2, eps, decay, step);
  const Type type = type_of_all(gradients);
  double* sums = sums_of(partial, 2 * chunks_of(items));
  double* totals = sums_of(out, 2 * static_cast<int64_t>(items.size()));
#if defined(KERNELS_CPU)
  for_chunks(items, [&](size_t at, int64_t chunk, int64_t from, int64_t to) {
    optimizer_kernels().lamb_moments(items[at], adam, type, from, to, sums + 2 * chunk);
  });
  int64_t chunk = 0;
  for (size_t i = 0; i < items.size(); ++i) {
    totals[2 * i] = totals[2 * i + 1] = 0.0;
    for (const int64_t last = chunk + chunks_of(items[i]); chunk < last; ++chunk) {
      totals[2 * i] += sums[2 * chunk];
      totals[2 * i + 1] += sums[2 * chunk + 1];
    }
  }
#else
  for_lists(items, [&](const List& list, size_t item, int64_t chunk) {
    const LambMoments args{list, adam, type, sums + 2 * chunk};
    check(kernels_lamb_moments(&args, totals + 2 * item, stream_of(out)), "lamb_moments");
  });
#endif
}

inline void lamb_step(const Tensors& weights, const Tensors& first, const Tensors& second,
                      const std::vector<int64_t>& pieces, const Tensor& ratio, double rate, double beta1, double beta2,
                      double eps, double decay, int64_t step) {
  const std::vector<Listed> items = cut(listed({}, weights, first, second, {}), pieces);
  const Adam adam = adam_of(std::nullopt, rate, beta1, beta2, eps, decay, step);
  const float* ratios = kept(ratio, static_cast<int64_t>(items.size()));
#if defined(KERNELS_CPU)
  for_chunks(items, [&](size_t at, int64_t, int64_t from, int64_t to) {
    optimizer_kernels().lamb_step(items[at], adam, ratios[at], from, to);
  });
#else
  for_lists(items, [&](const List& list, size_t item, int64_t) {
    const LambStep args{list, adam, ratios + item};
    check(kernels_lamb_step(&args, stream_of(ratio)), "lamb_step");
  });
#endif
}

}  // namespace kernels
