// Runs the optimizers: lists of tensors and of pieces that begin and end anywhere, of several chunks and of none.
#include "optimizer.h"

#include <memory>

#include "memory.h"

extern "C" {
int32_t kernels_squared_norm(const kernels::SquaredNorm* args, void* stream);
int32_t kernels_sum_chunks(const double* partial, int64_t count, double* out, void* stream);
int32_t kernels_adamw(const kernels::AdamWStep* args, void* stream);
int32_t kernels_lamb_moments(const kernels::LambMoments* args, double* out, void* stream);
int32_t kernels_lamb_step(const kernels::LambStep* args, void* stream);
}

namespace {

using namespace drivers;
using kernels::Type;

// Elements [begin, end) of arrays of `size`.
struct Piece {
  int64_t size, begin, end;
};

template <class G>
struct Arrays {
  Array<G> gradient;
  Array<float> weight, first, second;
  Array<__nv_bfloat16> copy;

  Arrays(int64_t size, Numbers& numbers) : gradient(size), weight(size), first(size), second(size), copy(size) {
    gradient.fill(numbers.floats<G>(size));
    weight.fill(numbers.floats<float>(size));
    first.fill(numbers.floats<float>(size));
    std::vector<float> squares = numbers.floats<float>(size);
    for (float& each : squares) each *= each;
    second.fill(squares);
  }
};

template <class G>
void run(const char* name, Type type, const std::vector<Piece>& pieces) {
  Numbers numbers(static_cast<uint32_t>(pieces.size()));
  std::vector<std::unique_ptr<Arrays<G>>> arrays;
  kernels::List list{};
  list.items = static_cast<int32_t>(pieces.size());
  for (int32_t i = 0; i < list.items; ++i) {
    arrays.push_back(std::make_unique<Arrays<G>>(pieces[i].size, numbers));
    Arrays<G>& each = *arrays.back();
    list.item[i] = {each.gradient.data(), each.weight.data(), each.first.data(), each.second.data(),
                    each.copy.data(), pieces[i].begin, pieces[i].end};
    list.first_chunk[i + 1] = list.first_chunk[i] + static_cast<int32_t>(kernels::chunks_of(list.item[i]));
  }
  const int64_t chunks = list.first_chunk[list.items];
  Array<double> partial(2 * chunks), norm(1), sums(2 * list.items);
  Array<float> factor(1), ratio(list.items);
  factor.fill({0.5f});
  ratio.fill(numbers.floats<float>(list.items));
  const kernels::Adam adam{0.9f, 0.1f, 0.99f, 0.01f, 1.5f, 1.25f, 1e-6f, 0.01f, 1e-2f, factor.data()};

  const kernels::SquaredNorm squares{list, type, partial.data()};
  require(kernels_squared_norm(&squares, nullptr) == kernels::kOk, "kernels_squared_norm");
  require(kernels_sum_chunks(partial.data(), chunks, norm.data(), nullptr) == kernels::kOk, "kernels_sum_chunks");
  const kernels::AdamWStep step{list, adam, type, Type::kBFloat16};
  require(kernels_adamw(&step, nullptr) == kernels::kOk, "kernels_adamw");
  const kernels::LambMoments moments{list, adam, type, partial.data()};
  require(kernels_lamb_moments(&moments, sums.data(), nullptr) == kernels::kOk, "kernels_lamb_moments");
  const kernels::LambStep scaled{list, adam, ratio.data()};
  require(kernels_lamb_step(&scaled, nullptr) == kernels::kOk, "kernels_lamb_step");

  Digest digest;
  digest.add(norm);
  digest.add(sums);
  for (const auto& each : arrays) {
    for (const Array<float>* array : {&each->weight, &each->first, &each->second}) digest.add(*array);
    digest.add(each->copy);
  }
  digest.print(name);
}

}  // namespace

int main() {
  const int64_t chunk = kernels::kChunk;
  run<float>("fp32", Type::kFloat32, {{1, 0, 1}, {chunk + 1, 0, chunk + 1}, {0, 0, 0}, {300, 0, 300}});
  run<__nv_bfloat16>("bf16", Type::kBFloat16, {{3 * chunk, 0, 3 * chunk}, {77, 0, 77}});
  run<float>("pieces", Type::kFloat32, {{2 * chunk + 11, 5, 2 * chunk + 9}, {40, 3, 6}, {40, 8, 16}, {chunk, 9, 9}});
  run<float>("none", Type::kFloat32, {});
  run<float>("empty", Type::kFloat32, {{0, 0, 0}});
}
