// Which of the levels that the kernels were compiled for runs here.
#include "levels.h"

#include <cstdlib>
#include <cstring>

namespace kernels {
namespace {

int choose() {
#if defined(__x86_64__)
  const char* text = std::getenv("KERNELS_CPU_LEVEL");
  const int highest = text != nullptr && std::strlen(text) == 2 && text[0] == 'v' ? text[1] - '0' : 4;
  if (highest >= 4 && __builtin_cpu_supports("x86-64-v4")) return 4;
  if (highest >= 3 && __builtin_cpu_supports("x86-64-v3")) return 3;
  return 2;
#else
  return 0;
#endif
}

bool multiplies_bf16() {
#if defined(__x86_64__)
  return std::getenv("KERNELS_CPU_LEVEL") == nullptr && choose() == 4 && __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

}  // namespace

int cpu_level() {
  static const int level = choose();
  return level;
}

bool cpu_multiplies_bf16() {
  static const bool answer = multiplies_bf16();
  return answer;
}

}  // namespace kernels

extern "C" __attribute__((visibility("default"))) int kernels_cpu_level() { return kernels::cpu_level(); }
