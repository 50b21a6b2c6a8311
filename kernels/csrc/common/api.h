// What the C interfaces of the kernel libraries share: raw pointers, sizes and a stream, nothing of torch.
//
// Each operation has a header here with its arguments, and a file of its name in ../cuda, ../cpu and ../torch. The
// bindings in ../torch fill the structs; the sizes that a kernel takes are checked before, in Python.
#pragma once

#include <cstdint>

namespace kernels {

enum class Type : int32_t { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

enum Status : int32_t { kOk = 0, kUnsupported = 1, kLaunchFailed = 2 };

// Which elements are dropped: see philox.h.
struct Dropout {
  const uint64_t* seed;  // in the memory of the tensors, so that a captured graph reads a new one each time
  uint32_t site;         // of the call in the model
  uint32_t threshold;    // drawn 16-bit numbers below it drop their element; 0 drops nothing, at most 65535
};

}  // namespace kernels
