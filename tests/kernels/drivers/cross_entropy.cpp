// Runs softmax cross-entropy: losses, gradients made with them in place of the logits, and gradients made later.
#include "cross_entropy.h"

#include "memory.h"

extern "C" {
int32_t kernels_cross_entropy_forward(const kernels::CrossEntropyForward* args, int64_t blocks, void* stream);
int32_t kernels_cross_entropy_backward(const kernels::CrossEntropyBackward* args, int64_t blocks, void* stream);
}

namespace {

using namespace drivers;
using kernels::Type;

template <class T>
void run(const char* name, Type type, int64_t rows, int64_t width) {
  constexpr int64_t kBlocks = 2;  // several rows each
  Numbers numbers(static_cast<uint32_t>(rows * width));
  Array<T> logits(rows * width), gradient(rows * width);
  Array<int64_t> labels(rows);
  Array<float> losses(rows), maximum(rows), total(rows), upstream(1);
  Array<int32_t> right(rows);
  std::vector<float> values = numbers.floats<float>(rows * width);
  std::vector<T> drawn(values.size());
  for (size_t i = 0; i < values.size(); ++i) {
    drawn[i] = static_cast<T>(i % width == static_cast<size_t>(width) - 1 ? -INFINITY : 20.0f * values[i]);
  }
  std::vector<int64_t> columns = numbers.below(width, rows);
  if (rows > 2) columns[1] = kernels::kIgnoredLabel, columns[2] = width + 5;
  logits.fill(drawn);
  labels.fill(columns);
  upstream.fill({0.25f});

  kernels::CrossEntropyForward forward{};
  forward.logits = logits.data();
  forward.labels = labels.data();
  forward.losses = losses.data();
  forward.maximum = maximum.data();
  forward.total = total.data();
  forward.right = right.data();
  forward.rows = rows;
  forward.width = width;
  forward.type = type;
  forward.scale = 2.0f;
  require(kernels_cross_entropy_forward(&forward, kBlocks, nullptr) == kernels::kOk, "kernels_cross_entropy_forward");

  kernels::CrossEntropyBackward backward{};
  backward.logits = logits.data();
  backward.labels = labels.data();
  backward.maximum = maximum.data();
  backward.total = total.data();
  backward.upstream = upstream.data();
  backward.gradient = gradient.data();
  backward.rows = rows;
  backward.width = width;
  backward.type = type;
  require(kernels_cross_entropy_backward(&backward, kBlocks, nullptr) == kernels::kOk, "kernels_cross_entropy_backward");

  Digest digest;
  for (const Array<float>* each : {&losses, &maximum, &total}) digest.add(*each);
  digest.add(right);
  digest.add(gradient);
  forward.gradient = logits.data();
  require(kernels_cross_entropy_forward(&forward, kBlocks, nullptr) == kernels::kOk, "kernels_cross_entropy_forward");
  for (const Array<float>* each : {&losses, &maximum, &total}) digest.add(*each);
  digest.add(logits);
  digest.print(name);
}

}  // namespace

int main() {
  run<float>("fp32", Type::kFloat32, 7, 4808);
  run<__nv_bfloat16>("bf16", Type::kBFloat16, 5, 8008);
  run<__half>("fp16", Type::kFloat16, 4, 2048);
  run<float>("narrow", Type::kFloat32, 3, 8);
  run<float>("no_rows", Type::kFloat32, 0, 64);
}
