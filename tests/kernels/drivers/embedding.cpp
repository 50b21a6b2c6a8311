// Runs the embeddings: rows of a warp and of a block, with a norm and without, runs of ids within and across pieces.
#include "embedding.h"

#include <algorithm>
#include <numeric>

#include "memory.h"

extern "C" {
int32_t kernels_embedding_forward(const kernels::EmbeddingForward* args, int64_t blocks, void* stream);
int32_t kernels_embedding_backward(const kernels::EmbeddingBackward* args, void* stream);
int32_t kernels_embedding_runs(const kernels::EmbeddingRuns* args, void* stream);
}

namespace {

using namespace drivers;
using kernels::kTables;
using kernels::Type;

constexpr int64_t kRows[kTables] = {50, 9, 2};
constexpr int64_t kBlocks = 3;

// The ids of all tables one after the other, sorted, and where they were.
void sort_ids(const std::vector<int64_t> (&ids)[kTables], Array<int64_t>& sorted, Array<int64_t>& order) {
  std::vector<int64_t> all_sorted, all_order;
  for (const std::vector<int64_t>& each : ids) {
    std::vector<int64_t> places(each.size());
    std::iota(places.begin(), places.end(), 0);
    std::stable_sort(places.begin(), places.end(), [&](int64_t a, int64_t b) { return each[a] < each[b]; });
    for (const int64_t place : places) {
      all_sorted.push_back(each[place]);
      all_order.push_back(place);
    }
  }
  sorted.fill(all_sorted);
  order.fill(all_order);
}

template <class T>
void run(const char* name, Type type, int64_t count, int64_t width, bool all, int64_t wrong_id = 0) {
  Numbers numbers(static_cast<uint32_t>(count * width));
  Array<T> word(kRows[0] * width), position(kRows[1] * width), segment(kRows[2] * width);
  Array<T> dword(kRows[0] * width), dposition(kRows[1] * width), dsegment(kRows[2] * width);
  Array<T> dy(count * width), y(count * width), dz(count * width);
  Array<float> weight(width), shift(width), mean(count), rstd(count), dweight(width), dshift(width);
  Array<int64_t> tokens(count), positions(count), segments(count), sorted(kTables * count), order(kTables * count);
  Array<uint64_t> seed(1);
  seed.fill({42});
  int64_t table = 0;
  for (Array<T>* each : {&word, &position, &segment}) each->fill(numbers.floats<T>(kRows[table++] * width));
  dy.fill(numbers.floats<T>(count * width));
  for (Array<float>* each : {&weight, &shift}) each->fill(numbers.floats<float>(width));
  std::vector<int64_t> ids[kTables];
  for (int t = 0; t < kTables; ++t) ids[t] = all || t < 2 ? numbers.below(kRows[t], count) : std::vector<int64_t>(count);
  if (wrong_id != 0) ids[0][1] = ids[1][2] = wrong_id;
  tokens.fill(ids[0]);
  positions.fill(ids[1]);
  segments.fill(ids[2]);
  sort_ids(ids, sorted, order);
  const kernels::Dropout dropout{seed.data(), 7, all ? 6554u : 0u};

  kernels::EmbeddingForward forward{};
  forward.from = {{tokens.data(), positions.data(), all ? segments.data() : nullptr},
                  {word.data(), position.data(), segment.data()},
                  {kRows[0], kRows[1], kRows[2]}};
  forward.weight = all ? weight.data() : nullptr;
  forward.shift = all ? shift.data() : nullptr;
  forward.y = y.data();
  forward.mean = all ? mean.data() : nullptr;
  forward.rstd = all ? rstd.data() : nullptr;
  forward.count = count;
  forward.width = width;
  forward.type = type;
  forward.parameter = Type::kFloat32;
  forward.eps = 1e-5f;
  forward.dropout = dropout;
  require(kernels_embedding_forward(&forward, kBlocks, nullptr) == kernels::kOk, "kernels_embedding_forward");

  if (all) {
    Array<float> partial(kBlocks * 2 * width);
    kernels::EmbeddingBackward backward{};
    backward.from = forward.from;
    backward.dy = dy.data();
    backward.weight = weight.data();
    backward.mean = mean.data();
    backward.rstd = rstd.data();
    backward.dz = dz.data();
    backward.dweight = dweight.data();
    backward.dshift = dshift.data();
    backward.partial = partial.data();
    backward.count = count;
    backward.width = width;
    backward.blocks = kBlocks;
    backward.type = type;
    backward.parameter = Type::kFloat32;
    backward.dropout = dropout;
    require(kernels_embedding_backward(&backward, nullptr) == kernels::kOk, "kernels_embedding_backward");
  }

  constexpr int64_t kLength = 4;
  const int64_t pieces = (count + kLength - 1) / kLength;
  Array<float> partial(kTables * pieces * 2 * width);
  const kernels::EmbeddingRuns runs{
      all ? dz.data() : dy.data(), sorted.data(), order.data(), {dword.data(), dposition.data(), dsegment.data()},
      {kRows[0], kRows[1], kRows[2]}, partial.data(), count, width, pieces, kLength, type};
  require(kernels_embedding_runs(&runs, nullptr) == kernels::kOk, "kernels_embedding_runs");

  Digest digest;
  for (const Array<T>* each : {&y, &dz, &dword, &dposition, &dsegment}) digest.add(*each);
  for (const Array<float>* each : {&mean, &rstd, &dweight, &dshift}) digest.add(*each);
  digest.print(name);
}

}  // namespace

int main() {
  run<float>("warp_fp32", Type::kFloat32, 37, 768, true);
  run<__nv_bfloat16>("warp_bf16", Type::kBFloat16, 83, 64, true);
  run<float>("warp_bare", Type::kFloat32, 5, 8, false);
  run<float>("block_fp32", Type::kFloat32, 7, 2048, true);
  run<__nv_bfloat16>("block_bf16", Type::kBFloat16, 3, 1600, true);
  run<float>("block_two_packs", Type::kFloat32, 2, 3000, true);
  run<float>("block_bare", Type::kFloat32, 2, 8192, false);
  run<float>("below_tables", Type::kFloat32, 9, 64, false, -1);
  run<__nv_bfloat16>("beyond_tables", Type::kBFloat16, 9, 64, true, int64_t{1} << 40);
  run<float>("no_rows", Type::kFloat32, 0, 64, true);
}
