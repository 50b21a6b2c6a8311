// Shows what the emulator makes of the instructions in warp_matrix.h: for each thread of a warp a line of numbers.
#include <string>

#include "attention_tiles.h"

namespace {

using namespace kernels;

constexpr int kNumbers = 32;  // that a thread shows, at most
constexpr int kStride = 24;   // between rows of 16 numbers in shared memory

// Small whole numbers, so that sums are exact.
template <class T>
T element(int matrix, int row, int column) {
  return from_float<T>(static_cast<float>((row * 7 + column * 5 + matrix * 3 + row * column) % 13 - 6));
}

template <class T>
uint32_t word(T first, T second) {
  uint32_t bits;
  const T both[2] = {first, second};
  std::memcpy(&bits, both, sizeof(bits));
  return bits;
}

template <class T>
void show_words(float* out, const uint32_t (&words)[4]) {
  for (int i = 0; i < 4; ++i) {
    T both[2];
    std::memcpy(both, &words[i], sizeof(both));
    out[2 * i] = to_float(both[0]), out[2 * i + 1] = to_float(both[1]);
  }
}

// Rows of a matrix [16, 16] in shared memory.
template <class T>
void fill(T* shared, int matrix) {
  for (int i = threadIdx.x; i < 16 * 16; i += kWarp) {
    shared[i / 16 * kStride + i % 16] = element<T>(matrix, i / 16, i % 16);
  }
  __syncwarp();
}

// c + a b: fragments as the PTX ISA has them for mma.m16n8k16, element by element.
template <class T>
void multiply(float* out) {
  const int group = threadIdx.x >> 2, place = threadIdx.x % 4;
  T a[8], b[4];
  float d[4];
  for (int i = 0; i < 8; ++i) {
    const int row = i < 2 || (4 <= i && i < 6) ? group : group + 8;
    const int column = place * 2 + (i & 1) + (i < 4 ? 0 : 8);
    a[i] = element<T>(0, row, column);
  }
  for (int i = 0; i < 4; ++i) b[i] = element<T>(1, place * 2 + (i & 1) + (i < 2 ? 0 : 8), group);
  for (int i = 0; i < 4; ++i) d[i] = to_float(element<T>(2, i < 2 ? group : group + 8, place * 2 + (i & 1)));
  const uint32_t left[4] = {word(a[0], a[1]), word(a[2], a[3]), word(a[4], a[5]), word(a[6], a[7])};
  const uint32_t right[2] = {word(b[0], b[1]), word(b[2], b[3])};
  multiply_add<T>(d, left, right);
  std::memcpy(out, d, sizeof(d));
}

// a b of matrices that are loaded, the second as it is and as the transposed one.
template <class T>
void multiply_loaded(float* out, unsigned char* memory) {
  const int lane = threadIdx.x;
  T *const a = reinterpret_cast<T*>(memory), *const b = a + 16 * kStride;
  fill(a, 0);
  fill(b, 1);
  uint32_t left[4], right[4];
  load_matrices(left, a + lane % 16 * kStride + lane / 16 * 8);
  for (int turn = 0; turn < 2; ++turn) {
    float d[2][4] = {};
    if (turn == 0) load_transposed(right, b + lane % 16 * kStride + lane / 16 * 8);
    if (turn == 1) load_matrices(right, b + (lane % 8 + lane / 16 * 8) * kStride + lane / 8 % 2 * 8);
    for (int n = 0; n < 2; ++n) {
      const uint32_t half[2] = {right[2 * n], right[2 * n + 1]};
      multiply_add<T>(d[n], left, half);
    }
    std::memcpy(out + 8 * turn, d, sizeof(d));
  }
}

// Matrix m of four is rows 8 (m / 2) and the next seven of one, columns 8 (m % 2) and the next seven.
void load(float* out, unsigned char* memory, bool transposed, int off) {
  __half* const shared = reinterpret_cast<__half*>(memory);
  fill(shared, 0);
  const int matrix = threadIdx.x / 8, row = threadIdx.x % 8;
  const __half* const from = shared + (matrix / 2 * 8 + row) * kStride + matrix % 2 * 8 + (threadIdx.x == 9 ? off : 0);
  uint32_t words[4];
  transposed ? load_transposed(words, from) : load_matrices(words, from);
  show_words<__half>(out, words);
}

// Three groups of a copy each, looked at before, between and after the waits; the third copies nothing but zeros.
void copy(float* out, unsigned char* memory, const __half* from, int off) {
  __half* const shared = reinterpret_cast<__half*>(memory) + threadIdx.x * 24;
  const auto look = [&](int turn) {
    for (int group = 0; group < 3; ++group) out[3 * turn + group] = to_float(shared[8 * group + 7]);
  };
  for (int i = 0; i < 24; ++i) shared[i] = from_float<__half>(1000.0f);
  for (int group = 0; group < 3; ++group) {
    copy_async(shared + 8 * group + (group == 1 ? off : 0), from + 8 * group, group < 2);
    end_copies();
  }
  look(0);
  wait_for_copies<2>();
  look(1);
  wait_for_copies<1>();
  look(2);
  wait_for_copies<0>();
  look(3);
}

// What begins uncertain, votes, and quads.
void others(float* out, unsigned char* memory) {
  out[0] = reinterpret_cast<float*>(memory)[threadIdx.x];
  out[1] = __any_sync(0xffffffffu, threadIdx.x == 13);
  out[2] = __any_sync(0xffffffffu, threadIdx.x == 32);
  out[3] = quad_max(static_cast<float>(threadIdx.x * 7 % 13));
  out[4] = quad_sum(static_cast<float>(threadIdx.x));
  uint32_t words[4];
  for (int i = 0; i < 4; ++i) words[i] = word(from_float<__half>(threadIdx.x), from_float<__half>(i));
  transpose_quad(words);
  show_words<__half>(out + 5, words);
  out[13] = key_at(threadIdx.x);
}

void show(const char* what, float* out, const __half* from) {
  KERNELS_DYNAMIC_SHARED(memory);
  const std::string name = what;
  float* const own = out + threadIdx.x * kNumbers;
  if (name == "bf16") return multiply<__nv_bfloat16>(own);
  if (name == "fp16") return multiply<__half>(own);
  if (name == "loaded_bf16") return multiply_loaded<__nv_bfloat16>(own, memory);
  if (name == "loaded_fp16") return multiply_loaded<__half>(own, memory);
  if (name == "load") return load(own, memory, false, 0);
  if (name == "transposed") return load(own, memory, true, 0);
  if (name == "load_off") return load(own, memory, false, 1);
  if (name == "copy") return copy(own, memory, from, 0);
  if (name == "copy_off") return copy(own, memory, from, 4);
  return others(own, memory);
}

}  // namespace

int main(int count, char** arguments) {
  const char* const what = count > 1 ? arguments[1] : "";
  alignas(16) __half numbers[24];
  for (int i = 0; i < 24; ++i) numbers[i] = from_float<__half>(static_cast<float>(i));
  float out[kWarp * kNumbers] = {};
  float* const results = out;
  const __half* const from = numbers;
  KERNELS_LAUNCH(show, dim3(1), dim3(kWarp), 2 * 16 * kStride * sizeof(__half), nullptr, what, results, from);
  for (int i = 0; i < kWarp * kNumbers; ++i) std::printf("%g%c", out[i], i % kNumbers == kNumbers - 1 ? '\n' : ' ');
}
