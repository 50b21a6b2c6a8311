// Runs the CPU kernels of activations and of softmax cross-entropy over numbers of all kinds, for sanitizers to watch:
// NaN and infinities, labels that are no columns, arrays that end where a row does.
#include <vector>

#include "activation.h"
#include "cross_entropy.h"
#include "numbers.h"

namespace {

using namespace kernels;

constexpr int64_t kRows = 24;

template <class T>
std::vector<T> numbers(int64_t size) {
  const float some[] = {0.5f,   __builtin_nanf(""), -1.0f, __builtin_inff(), 88.1f, -__builtin_inff(), -0.0f,  1e-40f,
                        3e38f, -3e38f,             13.3f, -13.3f,           -88.1f, 10.1f,            -10.1f, -127.5f};
  std::vector<T> out(size);
  for (int64_t i = 0; i < size; ++i) out[i] = from_float<T>(some[(i * 7 + i / 16) % 16] * (i % 3 == 0 ? 0.3f : 1.0f));
  return out;
}

template <class T>
void cross_entropy(Type type, int64_t width) {
  std::vector<T> logits = numbers<T>(kRows * width), gradient(kRows * width);
  std::vector<int64_t> labels(kRows);
  for (int64_t row = 0; row < kRows; ++row) labels[row] = row % 4 == 1 ? kIgnoredLabel : row % 4 == 2 ? width : 0;
  for (int64_t i = 0; i < 8 * width; ++i) logits[i] = from_float<T>(static_cast<float>(i % 5));  // some finite rows
  std::vector<float> losses(kRows), maximum(kRows), total(kRows), upstream(1, 0.5f);
  std::vector<int32_t> right(kRows);
  CrossEntropyForward forward{logits.data(), labels.data(), losses.data(), maximum.data(), total.data(),
                              right.data(),  nullptr,       kRows,         width,          type,         2.0f};
  const CrossEntropyBackward backward{logits.data(),   labels.data(),   maximum.data(), total.data(),
                                      upstream.data(), gradient.data(), kRows,          width,        type};
  KERNELS_OF_LEVEL(cross_entropy_kernels).forward(forward, 0, kRows);
  KERNELS_OF_LEVEL(cross_entropy_kernels).backward(backward, 0, kRows);
  forward.gradient = logits.data();
  KERNELS_OF_LEVEL(cross_entropy_kernels).forward(forward, 0, kRows);
}

template <class T>
void activation(Type type, int64_t width, Activation kind, bool gated) {
  const int64_t columns = gated ? 2 * width : width, blocks = 3;
  std::vector<T> x = numbers<T>(kRows * columns), dy = numbers<T>(kRows * width), y(kRows * width), dx(kRows * columns);
  std::vector<T> bias(columns, from_float<T>(0.1f));
  std::vector<float> dbias(columns), partial(blocks * columns);
  const ActivationForward forward{x.data(), bias.data(), y.data(), kRows, width, type, type, kind, gated};
  const ActivationBackward backward{dy.data(), x.data(), bias.data(), dx.data(), dbias.data(), partial.data(),
                                    kRows,     width,    blocks,      type,      type,         kind,           gated};
  KERNELS_OF_LEVEL(activation_kernels).forward(forward, 0, kRows);
  KERNELS_OF_LEVEL(activation_kernels).backward(backward, 0, blocks);
  KERNELS_OF_LEVEL(activation_kernels).reduce(backward, 0, columns);
}

template <class T>
void run(Type type) {
  for (const int64_t width : {1, 37, 64}) {
    cross_entropy<T>(type, width);
    for (const bool gated : {false, true}) {
      for (const Activation kind : {Activation::kGelu, Activation::kGeluTanh, Activation::kSilu}) {
        activation<T>(type, width, kind, gated);
      }
    }
  }
}

}  // namespace

int main() {
  run<float>(Type::kFloat32);
  run<BFloat16>(Type::kBFloat16);
  run<Float16>(Type::kFloat16);
}
