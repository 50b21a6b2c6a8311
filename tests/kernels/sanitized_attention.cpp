// Runs the CPU kernels of attention for sanitizers to watch: sequences of awkward lengths in arrays that end where the
// last one does, all types, masks, head sizes, shared keys, a bias, dropout, filler, and work that is cut in pieces.
#include <vector>

#include "attention.h"
#include "numbers.h"

namespace {

using namespace kernels;

constexpr int64_t kBlocks = 2;

struct Shape {
  std::vector<int32_t> boundaries;
  int64_t filler, heads, kv_heads, size, longest;
  Mask mask;
  bool biased;
  uint32_t threshold;
};

template <class T>
std::vector<T> numbers(int64_t size) {
  std::vector<T> out(size);
  for (int64_t i = 0; i < size; ++i) out[i] = from_float<T>(static_cast<float>(i * 7919 % 101) / 50.0f - 1.0f);
  return out;
}

template <class T>
void run(const Shape& shape, Type type) {
  const int64_t tokens = shape.boundaries.back() + shape.filler, sequences = shape.boundaries.size() - 1;
  const int64_t all_heads = shape.heads + 2 * shape.kv_heads, columns = shape.heads * (2 * shape.longest - 1);
  const std::vector<T> qkv = numbers<T>(tokens * all_heads * shape.size);
  const std::vector<T> dout = numbers<T>(tokens * shape.heads * shape.size);
  const std::vector<float> bias = numbers<float>(columns);
  const std::vector<int32_t> prefix(sequences, 3);
  const std::vector<uint64_t> seed(1, 5);
  std::vector<T> out(dout.size()), dqkv(qkv.size());
  std::vector<float> lse(shape.heads * tokens), dbias(columns), partial(kBlocks * columns);
  Attention in{};
  in.qkv = qkv.data(), in.boundaries = shape.boundaries.data(), in.bias = shape.biased ? bias.data() : nullptr;
  in.prefix = shape.mask == Mask::kPrefix ? prefix.data() : nullptr;
  in.tokens = tokens, in.sequences = sequences, in.heads = shape.heads, in.kv_heads = shape.kv_heads;
  in.size = shape.size, in.longest = shape.longest, in.type = type, in.mask = shape.mask, in.scale = 0.125f;
  in.dropout = Dropout{seed.data(), 1, shape.threshold};
  const AttentionForward forward{in, out.data(), lse.data()};
  AttentionBackward backward{};
  backward.in = in, backward.out = out.data(), backward.lse = lse.data(), backward.dout = dout.data();
  backward.dqkv = dqkv.data(), backward.dbias = shape.biased ? dbias.data() : nullptr;
  backward.partial = shape.biased ? partial.data() : nullptr, backward.blocks = shape.biased ? kBlocks : 0;
  const AttentionKernels& table = KERNELS_OF_LEVEL(attention_kernels);
  const int64_t units = attention_units(in), middle = units / 3;
  table.forward(forward, 0, middle);
  table.forward(forward, middle, units);
  table.backward(backward, 0, middle);
  table.backward(backward, middle, units);
  if (shape.biased) table.reduce(backward, 0, columns);
}

}  // namespace

int main() {
  const Shape shapes[] = {
      {{0, 1, 18, 18, 151}, 3, 2, 2, 64, 133, Mask::kFull, true, 0},
      {{0, 73, 104}, 0, 4, 2, 32, 80, Mask::kCausal, false, 6554},
      {{0, 5, 80}, 1, 2, 1, 96, 75, Mask::kPrefix, true, 6554},
      {{0, 47}, 0, 1, 1, 128, 47, Mask::kCausal, true, 0},
      {{0, 300}, 0, 2, 1, 64, 300, Mask::kCausal, false, 0},
      {{0}, 2, 1, 1, 64, 1, Mask::kFull, true, 0},
      {{0}, 0, 1, 1, 64, 1, Mask::kFull, false, 0},
  };
  for (const Shape& shape : shapes) {
    run<float>(shape, Type::kFloat32);
    run<BFloat16>(shape, Type::kBFloat16);
    run<Float16>(shape, Type::kFloat16);
  }
}
