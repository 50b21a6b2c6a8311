// Runs the activations: plain and gated, each kind, with a bias and without, tiles that are full and not.
#include "activation.h"

#include "memory.h"

extern "C" {
int32_t kernels_activation_forward(const kernels::ActivationForward* args, int64_t blocks, void* stream);
int32_t kernels_activation_backward(const kernels::ActivationBackward* args, void* stream);
}

namespace {

using namespace drivers;
using kernels::Activation;
using kernels::Type;

template <class T>
void run(const char* name, Type type, Activation kind, int64_t rows, int64_t width, bool gated, bool biased) {
  constexpr int64_t kBlocks = 3;
  const int64_t columns = gated ? 2 * width : width;
  Numbers numbers(static_cast<uint32_t>(rows * width));
  Array<T> x(rows * columns), y(rows * width), dy(rows * width), dx(rows * columns);
  Array<float> bias(columns), dbias(columns), partial(kBlocks * columns);
  x.fill(numbers.floats<T>(rows * columns));
  dy.fill(numbers.floats<T>(rows * width));
  bias.fill(numbers.floats<float>(columns));
  const void* given = biased ? bias.data() : nullptr;

  const kernels::ActivationForward forward{x.data(), given, y.data(), rows, width, type, Type::kFloat32, kind, gated};
  require(kernels_activation_forward(&forward, kBlocks, nullptr) == kernels::kOk, "kernels_activation_forward");

  const kernels::ActivationBackward backward{
      dy.data(), x.data(), given, dx.data(), biased ? dbias.data() : nullptr, biased ? partial.data() : nullptr,
      rows,      width,    kBlocks, type,    Type::kFloat32, kind, gated};
  require(kernels_activation_backward(&backward, nullptr) == kernels::kOk, "kernels_activation_backward");

  Digest digest;
  for (const Array<T>* each : {&y, &dx}) digest.add(*each);
  digest.add(dbias);
  digest.print(name);
}

}  // namespace

int main() {
  run<float>("gelu_fp32", Type::kFloat32, Activation::kGelu, 37, 768, false, true);
  run<__nv_bfloat16>("gelu_bf16", Type::kBFloat16, Activation::kGelu, 13, 264, false, true);
  run<__half>("tanh_fp16", Type::kFloat16, Activation::kGeluTanh, 5, 8, false, true);
  run<float>("tanh_bare", Type::kFloat32, Activation::kGeluTanh, 14, 512, false, false);
  run<float>("silu_gated_fp32", Type::kFloat32, Activation::kSilu, 29, 264, true, true);
  run<__nv_bfloat16>("gelu_gated_bf16", Type::kBFloat16, Activation::kGelu, 13, 512, true, true);
  run<__half>("tanh_gated_bare", Type::kFloat16, Activation::kGeluTanh, 3, 8, true, false);
  run<float>("no_rows", Type::kFloat32, Activation::kGelu, 0, 64, false, true);
}
