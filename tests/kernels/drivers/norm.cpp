// Runs the norms: rows of a warp and of a block, all parts and few, fp32 and bf16.
#include "norm.h"

#include "memory.h"

extern "C" {
int32_t kernels_norm_forward(const kernels::NormForward* args, int64_t blocks, void* stream);
int32_t kernels_norm_backward(const kernels::NormBackward* args, void* stream);
int32_t kernels_dropout_add(const kernels::DropoutAdd* args, int64_t blocks, void* stream);
}

namespace {

using namespace drivers;
using kernels::Type;

template <class T>
void run(const char* name, Type type, int64_t rows, int64_t width, bool all) {
  constexpr int64_t kBlocks = 3;
  Numbers numbers(static_cast<uint32_t>(rows * width));
  Array<T> x(rows * width), residual(rows * width), dy(rows * width), z(rows * width), y(rows * width);
  Array<T> dx(rows * width), dresidual(rows * width), sum(rows * width);
  Array<float> bias(width), weight(width), shift(width), mean(rows), rstd(rows);
  Array<float> dweight(width), dshift(width), dbias(width), partial(kBlocks * 3 * width);
  Array<uint64_t> seed(1);
  seed.fill({42});
  for (Array<T>* each : {&x, &residual, &dy}) each->fill(numbers.floats<T>(rows * width));
  for (Array<float>* each : {&bias, &weight, &shift}) each->fill(numbers.floats<float>(width));
  const kernels::Dropout dropout{seed.data(), 7, all ? 6554u : 0u};

  kernels::NormForward forward{};
  forward.x = x.data();
  forward.bias = all ? bias.data() : nullptr;
  forward.residual = all ? residual.data() : nullptr;
  forward.weight = weight.data();
  forward.shift = all ? shift.data() : nullptr;
  forward.z = all ? z.data() : nullptr;
  forward.y = y.data();
  forward.mean = all ? mean.data() : nullptr;
  forward.rstd = rstd.data();
  forward.rows = rows;
  forward.width = width;
  forward.input = forward.output = type;
  forward.parameter = Type::kFloat32;
  forward.eps = 1e-5f;
  forward.dropout = dropout;
  require(kernels_norm_forward(&forward, kBlocks, nullptr) == kernels::kOk, "kernels_norm_forward");

  kernels::NormBackward backward{};
  backward.dy = dy.data();
  backward.dz = all ? residual.data() : nullptr;
  backward.z = all ? z.data() : x.data();
  backward.weight = weight.data();
  backward.mean = all ? mean.data() : nullptr;
  backward.rstd = rstd.data();
  backward.dx = dx.data();
  backward.dresidual = all ? dresidual.data() : nullptr;
  backward.dweight = dweight.data();
  backward.dshift = all ? dshift.data() : nullptr;
  backward.dbias = all ? dbias.data() : nullptr;
  backward.partial = partial.data();
  backward.rows = rows;
  backward.width = width;
  backward.blocks = kBlocks;
  backward.input = backward.output = type;
  backward.parameter = Type::kFloat32;
  backward.dropout = dropout;
  require(kernels_norm_backward(&backward, nullptr) == kernels::kOk, "kernels_norm_backward");

  const kernels::DropoutAdd add{x.data(), residual.data(), sum.data(), rows, width, type, {seed.data(), 8, 6554u}};
  require(kernels_dropout_add(&add, kBlocks, nullptr) == kernels::kOk, "kernels_dropout_add");

  Digest digest;
  for (const Array<T>* each : {&z, &y, &dx, &dresidual, &sum}) digest.add(*each);
  for (const Array<float>* each : {&mean, &rstd, &dweight, &dshift, &dbias}) digest.add(*each);
  digest.print(name);
}

}  // namespace

int main() {
  run<float>("warp_fp32", Type::kFloat32, 37, 768, true);
  run<__nv_bfloat16>("warp_bf16", Type::kBFloat16, 13, 64, true);
  run<float>("warp_bare", Type::kFloat32, 5, 8, false);
  run<float>("block_fp32", Type::kFloat32, 7, 2048, true);
  run<__nv_bfloat16>("block_bf16", Type::kBFloat16, 3, 1600, true);
  run<float>("block_two_packs", Type::kFloat32, 2, 3000, true);
  run<float>("block_bare", Type::kFloat32, 2, 8192, false);
  run<float>("no_rows", Type::kFloat32, 0, 64, true);
}
