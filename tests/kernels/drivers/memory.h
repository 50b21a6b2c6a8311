// What the drivers share: arrays that end where a sanitizer looks, numbers to fill them with, and digests of results.
//
// A driver runs the kernels of one operation without torch, on a GPU or under the emulator, and prints a line for each
// case: its name and a digest of all results. The lines must be the same for each schedule of the emulator.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "portable.h"

namespace drivers {

inline void require(bool well, const char* what) {
  if (well) return;
  std::fprintf(stderr, "driver: %s failed\n", what);
  std::exit(3);
}

// An array in the memory of the kernels, which holds its elements and not a byte more.
template <class T>
class Array {
 public:
  explicit Array(int64_t size) : size_(size) {
#if defined(__CUDACC__)
    require(cudaMalloc(&data_, bytes() > 0 ? bytes() : 1) == cudaSuccess, "cudaMalloc");
#else
    data_ = static_cast<T*>(std::malloc(bytes() > 0 ? bytes() : 1));
    require(data_ != nullptr, "malloc");
#endif
    fill(std::vector<T>(size, T{}));
  }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
  ~Array() {
#if defined(__CUDACC__)
    cudaFree(data_);
#else
    std::free(data_);
#endif
  }

  T* data() { return data_; }

  void fill(const std::vector<T>& values) {
#if defined(__CUDACC__)
    require(cudaMemcpy(data_, values.data(), bytes(), cudaMemcpyHostToDevice) == cudaSuccess, "cudaMemcpy");
#else
    if (size_ > 0) std::memcpy(data_, values.data(), bytes());
#endif
  }

  std::vector<T> values() const {
    std::vector<T> out(size_);
#if defined(__CUDACC__)
    require(cudaMemcpy(out.data(), data_, bytes(), cudaMemcpyDeviceToHost) == cudaSuccess, "cudaMemcpy");
#else
    if (size_ > 0) std::memcpy(out.data(), data_, bytes());
#endif
    return out;
  }

 private:
  size_t bytes() const { return static_cast<size_t>(size_) * sizeof(T); }

  T* data_ = nullptr;
  int64_t size_;
};

// Numbers in [-1, 1), the same everywhere.
class Numbers {
 public:
  explicit Numbers(uint32_t seed) : state_(seed * 2654435761u + 1u) {}

  float next() {
    state_ = state_ * 1664525u + 1013904223u;
    return static_cast<float>(state_ >> 8) / 8388608.0f - 1.0f;
  }

  template <class T>
  std::vector<T> floats(int64_t size) {
    std::vector<T> out(size);
    for (T& each : out) each = static_cast<T>(next());
    return out;
  }

  std::vector<int64_t> below(int64_t limit, int64_t size) {
    std::vector<int64_t> out(size);
    for (int64_t& each : out) each = static_cast<int64_t>((next() + 1.0f) / 2.0f * static_cast<float>(limit));
    return out;
  }

 private:
  uint32_t state_;
};

// What a sequence's boundaries make of it: its tokens, cut to the batch's, and whether it is one. The first sequence
// begins at token 0.
struct Sequence {
  int64_t start, end;
  bool fits;

  Sequence(const std::vector<int32_t>& boundaries, size_t number, int64_t tokens, int64_t longest) {
    const int64_t first = boundaries[number], last = boundaries[number + 1];
    start = number == 0 ? 0 : first < 0 ? 0 : first < tokens ? first : tokens;
    end = last < start ? start : last < tokens ? last : tokens;
    fits = first == start && last == end && end - start <= longest;
  }
};

// FNV-1a of the bytes of results.
class Digest {
 public:
  template <class T>
  void add(const Array<T>& array) {
    const std::vector<T> values = array.values();
    const unsigned char* bytes = reinterpret_cast<const unsigned char*>(values.data());
    for (size_t i = 0; i < values.size() * sizeof(T); ++i) state_ = (state_ ^ bytes[i]) * 1099511628211u;
  }

  void print(const char* name) const { std::printf("%s %016llx\n", name, static_cast<unsigned long long>(state_)); }

 private:
  uint64_t state_ = 14695981039346656037u;
};

}  // namespace drivers
