// 16-bit numbers, random draws and buffers for loops that a compiler vectorizes; all local to the file that includes it.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "../common/api.h"
#include "../common/philox.h"

namespace kernels {
namespace {

struct BFloat16 {
  uint16_t bits;
};
using Float16 = _Float16;

inline float to_float(float value) { return value; }
inline float to_float(Float16 value) { return static_cast<float>(value); }
inline float to_float(BFloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof(result));
  return result;
}

template <class T>
T from_float(float value) {
  return static_cast<T>(value);
}

// To the nearest, ties to even; a NaN stays one.
template <>
inline BFloat16 from_float<BFloat16>(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  const uint32_t up = 0x7fffu + ((bits >> 16) & 1u);
  if (value != value) bits = 0x7fc00000u;
  return BFloat16{static_cast<uint16_t>((bits + up) >> 16)};
}

// Room for floats, for as long as it lives.
class Floats {
 public:
  explicit Floats(int64_t size, float value = 0.0f) : data_(static_cast<float*>(std::malloc((size + 1) * sizeof(float)))) {
    if (data_ == nullptr) std::abort();
    for (int64_t i = 0; i < size; ++i) data_[i] = value;
  }
  Floats(const Floats&) = delete;
  Floats& operator=(const Floats&) = delete;
  ~Floats() { std::free(data_); }

  float* data() { return data_; }

 private:
  float* data_;
};

// Room for words that begin with a line of the cache; what they are is open.
template <class Word>
class Room {
 public:
  explicit Room(int64_t size) {
    data_ = static_cast<Word*>(std::aligned_alloc(64, (size * sizeof(Word) / 64 + 1) * 64));
    if (data_ == nullptr) std::abort();
  }
  Room(const Room&) = delete;
  Room& operator=(const Room&) = delete;
  ~Room() { std::free(data_); }

  Word* data() { return data_; }

 private:
  Word* data_;
};

// Calls the function with a value of the C++ type of `type`.
template <class Function>
void with_type(Type type, Function function) {
  switch (type) {
    case Type::kFloat32: return function(float{});
    case Type::kBFloat16: return function(BFloat16{});
    case Type::kFloat16: return function(Float16{});
  }
}

// A parameter of any type as floats: [width].
inline void read_parameter(const void* parameter, Type type, int64_t width, float* out) {
  with_type(type, [&](auto zero) {
    using T = decltype(zero);
    const T* values = static_cast<const T*>(parameter);
    for (int64_t i = 0; i < width; ++i) out[i] = to_float(values[i]);
  });
}

// The factors of a row's elements [first, first + width) under dropout, 0 or the scale: [width], rounded up to a
// multiple of kDraws, of which `first` is one.
inline void dropout_factors(const Dropout& dropout, int64_t row, int64_t width, float* out, int64_t first = 0) {
  constexpr int64_t kGroups = 32, kWords = kDraws / 2;  // drawn at a time, and the words of one
  const uint64_t seed = *dropout.seed;
  const uint32_t site = dropout.site, threshold = dropout.threshold;
  const float scale = keep_scale(threshold);
  const int64_t groups = (width + kDraws - 1) / kDraws;
  uint32_t words[kGroups * kWords];
  for (int64_t begin = 0; begin < groups; begin += kGroups) {
    const int64_t count = groups - begin < kGroups ? groups - begin : kGroups;
#pragma omp simd
    for (int64_t group = 0; group < count; ++group) {
      const Draws draws = philox(seed, site, row, static_cast<uint32_t>(first / kDraws + begin + group));
      for (int64_t i = 0; i < kWords; ++i) words[group * kWords + i] = draws.word[i];
    }
    float* factors = out + begin * kDraws;
#pragma omp simd
    for (int64_t i = 0; i < count * kWords; ++i) {
      factors[2 * i] = (words[i] & 0xffffu) < threshold ? 0.0f : scale;
      factors[2 * i + 1] = words[i] >> 16 < threshold ? 0.0f : scale;
    }
  }
}

}  // namespace
}  // namespace kernels
