// The CPU kernels are compiled once for each level of instructions, and chosen at run time.
//
// Each operation has a table of functions here, `struct NAMEKernels`, and a file that fills it for KERNELS_LEVEL. What
// such a file uses is local to it: a weak symbol, as of std::vector, could be that of another level (a test looks).
// A function works on a range, in one thread; who calls it divides the work.
#pragma once

#include <cstdint>

namespace kernels {

// The level of this machine, 2 to 4 for x86-64-v2 to -v4: KERNELS_CPU_LEVEL (v2, v3, v4 or v4bf16) lowers it.
int cpu_level();

// Whether it also multiplies bf16 numbers; not where KERNELS_CPU_LEVEL names a level below v4bf16.
bool cpu_multiplies_bf16();

}  // namespace kernels

#define KERNELS_JOIN_(a, b) a##b
#define KERNELS_JOIN(a, b) KERNELS_JOIN_(a, b)
#define KERNELS_OF_LEVEL(name) KERNELS_JOIN(name, KERNELS_LEVEL)

// Declares the tables of all levels, and name(): that of this machine.
#if defined(__x86_64__)
#define KERNELS_LEVELS(Table, name)                                                        \
  extern const Table name##v2, name##v3, name##v4;                                         \
  inline const Table& name() { return cpu_level() >= 4 ? name##v4 : cpu_level() == 3 ? name##v3 : name##v2; }
// So with another one above -v4, of what multiplies bf16 numbers.
#define KERNELS_LEVELS_BF16(Table, name)                                                                        \
  extern const Table name##v2, name##v3, name##v4, name##v4bf16;                                                \
  inline const Table& name() {                                                                                  \
    if (cpu_multiplies_bf16()) return name##v4bf16;                                                             \
    return cpu_level() >= 4 ? name##v4 : cpu_level() == 3 ? name##v3 : name##v2;                                \
  }
#else
#define KERNELS_LEVELS_BF16(Table, name) KERNELS_LEVELS(Table, name)
#define KERNELS_LEVELS(Table, name)   \
  extern const Table name##generic;   \
  inline const Table& name() { return name##generic; }
#endif
