// CUDA as our kernels use it: by nvcc for GPUs, by a host compiler with the emulator for tests without one.
#pragma once

#include <atomic>
#include <cstdio>

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#define KERNELS_SHARED(type, name, extents) __shared__ type name extents
#define KERNELS_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
// Registers of a thread, at most, of a kernel in blocks of so many threads.
#if CUDART_VERSION >= 12040
#define KERNELS_REGISTERS(threads, registers) __maxnreg__(registers)
#else
#define KERNELS_REGISTERS(threads, registers) __launch_bounds__(threads, 65536 / ((threads) * (registers)))
#endif
#define KERNELS_LAUNCH(kernel, grid, block, shared, stream, ...) \
  kernel<<<(grid), (block), (shared), static_cast<cudaStream_t>(stream)>>>(__VA_ARGS__)
#define KERNELS_LAUNCH_STATUS() kernels::launch_status()
#else
#include "../emulator/cuda_emulator.h"
#endif

#define KERNELS_EXPORT extern "C" __attribute__((visibility("default")))

#include "api.h"
#include "philox.h"

namespace kernels {

#if defined(__CUDACC__)
// Whether the last launch was taken; what CUDA says of one that was not.
inline int32_t launch_status() {
  const cudaError_t error = cudaGetLastError();
  if (error == cudaSuccess) return kOk;
  std::fprintf(stderr, "kernels: a launch failed: %s (%s)\n", cudaGetErrorName(error), cudaGetErrorString(error));
  return kLaunchFailed;
}

// Lets a kernel be launched with so many bytes of dynamic shared memory, of which it has 48 KiB unasked. Each device is
// told once.
template <auto kKernel, int kBytes>
int32_t allow_shared() {
  static std::atomic<uint64_t> told{0};  // bit by device
  int device = 0;
  cudaError_t error = cudaGetDevice(&device);
  const uint64_t bit = device < 64 ? uint64_t{1} << device : 0;
  if (error == cudaSuccess && (told.load() & bit) != 0) return kOk;
  if (error == cudaSuccess) error = cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  if (error == cudaSuccess) {
    told.fetch_or(bit);
    return kOk;
  }
  (void)cudaGetLastError();  // which this is
  std::fprintf(stderr, "kernels: no %d bytes of shared memory: %s (%s)\n", kBytes, cudaGetErrorName(error),
               cudaGetErrorString(error));
  return kLaunchFailed;
}
#else
template <auto kKernel, int kBytes>
int32_t allow_shared() {
  static_assert(static_cast<size_t>(kBytes) <= emulator::kMaxShared);
  return kOk;
}
#endif

constexpr int kWarp = 32;
constexpr int kPack = kDraws;  // elements that a thread loads at once, and that share a Philox call

// Eight neighbouring elements, loaded 16 bytes at a time.
template <class T>
struct alignas(16) Pack {
  T value[kPack];
};

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }
__device__ __forceinline__ float to_float(__half value) { return __half2float(value); }

template <class T>
__device__ __forceinline__ T from_float(float value);
template <>
__device__ __forceinline__ float from_float<float>(float value) {
  return value;
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float value) {
  return __float2bfloat16(value);
}
template <>
__device__ __forceinline__ __half from_float<__half>(float value) {
  return __float2half(value);
}

// Pack `pack` of an array as floats.
template <class T>
__device__ __forceinline__ void load(const T* array, int64_t pack, float (&out)[kPack]) {
  const Pack<T> loaded = reinterpret_cast<const Pack<T>*>(array)[pack];
#pragma unroll
  for (int i = 0; i < kPack; ++i) out[i] = to_float(loaded.value[i]);
}

template <class T>
__device__ __forceinline__ void store(T* array, int64_t pack, const float (&values)[kPack]) {
  Pack<T> packed;
#pragma unroll
  for (int i = 0; i < kPack; ++i) packed.value[i] = from_float<T>(values[i]);
  reinterpret_cast<Pack<T>*>(array)[pack] = packed;
}

// The same for parameters, whose type is known at run time alone: few bytes, and a branch that all threads take alike.
__device__ __forceinline__ void load_parameter(const void* array, Type type, int64_t pack, float (&out)[kPack]) {
  if (type == Type::kFloat32) {
    load(static_cast<const float*>(array), pack, out);
  } else if (type == Type::kBFloat16) {
    load(static_cast<const __nv_bfloat16*>(array), pack, out);
  } else {
    load(static_cast<const __half*>(array), pack, out);
  }
}

__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
  return value;
}

// Dropout of the eight elements of a pack of a row.
__device__ __forceinline__ void drop(float (&values)[kPack], const Dropout& dropout, int64_t row, int64_t pack) {
  const Draws draws = philox(*dropout.seed, dropout.site, row, static_cast<uint32_t>(pack));
  const float scale = keep_scale(dropout.threshold);
#pragma unroll
  for (int i = 0; i < kPack; ++i) values[i] = draws.at(i) < dropout.threshold ? 0.0f : values[i] * scale;
}

// Calls the function with a value of the C++ type of `type`.
template <class Function>
int32_t with_type(Type type, Function function) {
  switch (type) {
    case Type::kFloat32: return function(float{});
    case Type::kBFloat16: return function(__nv_bfloat16{});
    case Type::kFloat16: return function(__half{});
  }
  return kUnsupported;
}

}  // namespace kernels
