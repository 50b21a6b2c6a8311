// From tensors to the arguments of kernels, for all bindings.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <optional>

#include "../common/api.h"

#if defined(KERNELS_CPU)
#define KERNELS_NAMESPACE kernels_cpu
#define KERNELS_KEY CPU
#elif defined(KERNELS_EMULATOR)
#define KERNELS_NAMESPACE kernels_emulator
#define KERNELS_KEY CPU
#else
#define KERNELS_NAMESPACE kernels_cuda
#define KERNELS_KEY CUDA
#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>
#endif

namespace kernels {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline Type type_of(ScalarType type) {
  switch (type) {
    case ScalarType::Float: return Type::kFloat32;
    case ScalarType::BFloat16: return Type::kBFloat16;
    case ScalarType::Half: return Type::kFloat16;
    default: break;
  }
  STD_TORCH_CHECK(false, "kernels: tensors must be float32, bfloat16 or float16");
  return Type::kFloat32;
}

inline const void* data_of(const Tensor& tensor) {
  STD_TORCH_CHECK(tensor.is_contiguous(), "kernels: tensors must be contiguous");
  return tensor.data_ptr();
}

inline const void* data_of(const std::optional<Tensor>& tensor) {
  return tensor.has_value() ? data_of(*tensor) : nullptr;
}

inline int64_t width_of(const Tensor& x) { return x.size(x.dim() - 1); }

inline int64_t rows_of(const Tensor& x) { return x.numel() / std::max<int64_t>(1, width_of(x)); }

inline Dropout dropout_of(int64_t threshold, const std::optional<Tensor>& seed, int64_t site) {
  STD_TORCH_CHECK(threshold == 0 || (seed.has_value() && seed->scalar_type() == ScalarType::Long),
                  "kernels: dropout needs a seed, an int64 tensor of one element");
  return Dropout{static_cast<const uint64_t*>(data_of(seed)), static_cast<uint32_t>(site),
                 static_cast<uint32_t>(threshold)};
}

inline void* output_of(const Tensor& tensor) {
  STD_TORCH_CHECK(tensor.is_contiguous(), "kernels: tensors must be contiguous");
  return tensor.numel() > 0 ? tensor.data_ptr() : nullptr;
}

#if defined(KERNELS_CPU)

constexpr int64_t kGrainElements = 16 * 1024;  // of a thread at least

// Rows that a thread should have at least.
inline int64_t grain_of(int64_t width) { return std::max<int64_t>(1, kGrainElements / std::max<int64_t>(1, width)); }

#else

#if !defined(KERNELS_EMULATOR)

using CurrentStream = AOTITorchError (*)(int32_t device_index, void** stream);

// torch's function for it, of a library that Python loaded for itself alone and that a torch for CPUs does not have: it
// can be no dependency of ours.
inline CurrentStream current_stream_of_torch() {
  void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
  if (library == nullptr) return nullptr;
  return reinterpret_cast<CurrentStream>(dlsym(library, "aoti_torch_get_current_cuda_stream"));
}

#endif

// The stream to launch on. Its device is the current one for as long as this lives, which a launch asks for.
class Stream {
 public:
#if defined(KERNELS_EMULATOR)
  explicit Stream(const Tensor&) {}
#else
  explicit Stream(const Tensor& tensor) : guard_(tensor.get_device_index()) {
    static const CurrentStream current = current_stream_of_torch();
    STD_TORCH_CHECK(current != nullptr && current(tensor.get_device_index(), &stream_) == 0,
                    "kernels: torch has no current CUDA stream");
  }
#endif

  operator void*() const { return stream_; }

 private:
#if !defined(KERNELS_EMULATOR)
  torch::stable::accelerator::DeviceGuard guard_;
#endif
  void* stream_ = nullptr;
};

// For the length of the statement that launches.
inline Stream stream_of(const Tensor& tensor) { return Stream(tensor); }

inline void check(int32_t status, const char* name) {
  STD_TORCH_CHECK(status != kUnsupported, "kernels: ", name, " does not take these sizes");
  STD_TORCH_CHECK(status == kOk, "kernels: ", name, " could not be launched");
}

#endif

}  // namespace kernels
