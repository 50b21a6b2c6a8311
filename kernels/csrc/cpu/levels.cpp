// Which of the levels that the kernels were compiled for runs here.
#include "levels.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace kernels {
namespace {

#if defined(__x86_64__)
constexpr int kMultipliesBf16 = 5;

// What KERNELS_CPU_LEVEL names; the highest where it is not set, empty or unknown.
int allowed() {
  const char* text = std::getenv("KERNELS_CPU_LEVEL");
  if (text == nullptr || *text == '\0') return kMultipliesBf16;
  constexpr const char* kNames[] = {"v2", "v3", "v4", "v4bf16"};
  for (int i = 0; i < 4; ++i) {
    if (std::strcmp(text, kNames[i]) == 0) return i + 2;
  }
  std::fprintf(stderr, "KERNELS_CPU_LEVEL is '%s' and ignored; it must be one of v2, v3, v4, v4bf16\n", text);
  return kMultipliesBf16;
}

int choose() {
  const int highest = allowed();
  if (highest >= 4 && __builtin_cpu_supports("x86-64-v4")) {
    return highest > 4 && __builtin_cpu_supports("avx512bf16") ? kMultipliesBf16 : 4;
  }
  return highest >= 3 && __builtin_cpu_supports("x86-64-v3") ? 3 : 2;
}
#else
constexpr int kMultipliesBf16 = 1;

int choose() { return 0; }
#endif

int chosen() {
  static const int level = choose();
  return level;
}

}  // namespace

int cpu_level() { return chosen() < 4 ? chosen() : 4; }

bool cpu_multiplies_bf16() { return chosen() == kMultipliesBf16; }

}  // namespace kernels

extern "C" __attribute__((visibility("default"))) int kernels_cpu_level() { return kernels::cpu_level(); }

extern "C" __attribute__((visibility("default"))) bool kernels_cpu_multiplies_bf16() {
  return kernels::cpu_multiplies_bf16();
}
