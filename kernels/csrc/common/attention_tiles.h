// What the kernels of attention on a GPU share: where a block works, how its rows reach shared memory, and dropout.
#pragma once

#include "attention.h"
#include "warp_matrix.h"

namespace kernels {

constexpr int kSharedBytes = 99 * 1024;  // of a block, on sm_86 and sm_89

// Numbers between the begins of two rows in shared memory: 16 bytes more than a row has, so that the eight rows of a
// matrix lie in different banks.
template <int kSize>
constexpr int kRowStride = kSize + 8;

// Numbers between a head's rows of two tokens, in qkv and dqkv.
template <int kSize>
__device__ __forceinline__ int stride_of(const Attention& in) {
  return static_cast<int>(in.heads + 2 * in.kv_heads) * kSize;
}

// Where a head of queries has that of a token, and the key that it sees of it; the value is `values_behind` further.
template <class T, int kSize>
__device__ __forceinline__ const T* query_of(const Attention& in, int64_t token, int head) {
  return static_cast<const T*>(in.qkv) + token * stride_of<kSize>(in) + head * kSize;
}

template <class T, int kSize>
__device__ __forceinline__ const T* key_of(const Attention& in, int64_t token, int head) {
  const int heads = static_cast<int>(in.heads), kv_heads = static_cast<int>(in.kv_heads);
  return query_of<T, kSize>(in, token, heads + head / (heads / kv_heads));
}

template <int kSize>
__device__ __forceinline__ int values_behind(const Attention& in) {
  return static_cast<int>(in.kv_heads) * kSize;
}

// Rows [first, first + rows of the tile) of a sequence; sequence S is the filler behind the last one.
struct Tile {
  int sequence, first;
  int64_t start;  // of the sequence, in tokens of the batch
  int length;     // of the sequence
  bool fits;      // the sequence

  __device__ __forceinline__ bool empty() const { return first >= length; }
};

// Tiles that a launch needs at most, whatever the lengths of S sequences are: those of sequence s are numbered from
// boundaries[s] / rows + s on, and the numbers up to the next sequence's are enough for any length.
inline int64_t tiles_of(const Attention& in, int rows) { return in.tokens / rows + in.sequences + 1; }

// Where a sequence begins: among the tokens, and the first one at token 0, whatever the boundaries say.
__device__ __forceinline__ int start_of(const Attention& in, int sequence) {
  return sequence == 0 ? 0 : min(max(in.boundaries[sequence], 0), static_cast<int>(in.tokens));
}

// A whole sequence, cut to where there are tokens. It does not fit if a boundary lies elsewhere than start_of says, or
// if it is longer than L; its results are then NaN. Where boundaries fall, sequences may overlap, and tokens behind may
// belong to none: what is written of these is not said.
__device__ __forceinline__ Tile find_sequence(const Attention& in, int sequence) {
  const bool filler = sequence == in.sequences;
  const int start = start_of(in, sequence), end = filler ? static_cast<int>(in.tokens) : start_of(in, sequence + 1);
  const int length = end - start;
  const bool fits = filler || (in.boundaries[sequence] == start && in.boundaries[sequence + 1] == end && length >= 0 &&
                               length <= in.longest);
  return Tile{sequence, 0, start, max(length, 0), fits};
}

// Tile `number`, by bisection; empty where the sequence is shorter than its numbers reach.
__device__ __forceinline__ Tile find_tile(const Attention& in, int number, int rows) {
  int low = 0, high = static_cast<int>(in.sequences);
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (start_of(in, middle) / rows + middle <= number) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  Tile tile = find_sequence(in, low);
  const int64_t first = static_cast<int64_t>(number - static_cast<int>(tile.start) / rows - low) * rows;
  tile.first = static_cast<int>(min(first, static_cast<int64_t>(tile.length)));
  return tile;
}

// Begins to copy rows [first, first + kRows) of a head to shared memory, [kRows, kRowStride]; from `length` on they are
// zero. `stride` numbers lie between the rows of `head`, which points at row 0.
template <class T, int kSize, int kRows, int kThreads>
__device__ __forceinline__ void copy_rows(T* shared, const T* head, int stride, int first, int length) {
  constexpr int kPacks = kSize / kPack, kStep = kThreads / kPacks, kTurns = (kRows + kStep - 1) / kStep;
  const int row = threadIdx.x / kPacks, column = threadIdx.x % kPacks * kPack;
  const T* from = head + static_cast<int64_t>(first + row) * stride + column;
#pragma unroll
  for (int i = 0; i < kTurns; ++i, from += kStep * stride) {
    const int at = row + i * kStep;
    if ((kThreads % kPacks != 0 && row >= kStep) || (kRows % kStep != 0 && at >= kRows)) continue;
    const bool there = first + at < length;
    copy_async(shared + at * kRowStride<kSize> + column, there ? from : head, there);
  }
}

// Where the key at a place of 32 in shared memory stands among them, if a thread shall have the scores of eight
// neighbours, for which dropout draws together: of the matrices d at places 0, 8, 16 and 24 it has the columns 2t and
// 2t + 1.
__device__ __forceinline__ int key_at(int place) { return place % 8 / 2 * 8 + place / 8 * 2 + place % 2; }

// Begins to copy keys [first, first + rows) and their values to shared memory as copy_rows does, each 32 of them in the
// order of key_at; `key` is where key 0 lies.
template <class T, int kSize>
__device__ __forceinline__ void copy_keys(T* keys, T* values, const Attention& in, const T* key, int first, int rows,
                                          int length) {
  constexpr int kPacks = kSize / kPack;
  for (int i = threadIdx.x; i < rows * kPacks; i += blockDim.x) {
    const int row = i / kPacks, to = row * kRowStride<kSize> + i % kPacks * kPack;
    const int number = first + row / 32 * 32 + key_at(row % 32);
    const bool there = number < length;
    const T* from = key + i % kPacks * kPack;
    if (there) from += static_cast<int64_t>(number) * stride_of<kSize>(in);
    copy_async(keys + to, from, there);
    copy_async(values + to, from + values_behind<kSize>(in), there);
  }
}

// Four pairs of 16-bit numbers, which a thread loads or stores at once.
struct alignas(16) Words {
  uint32_t word[4];
};

// Word i of thread t of a quad becomes word t of thread i: from rows in memory, of which a thread has eight neighbours,
// to fragments a, and from d back.
__device__ __forceinline__ void transpose_quad(uint32_t (&words)[4]) {
#pragma unroll
  for (int bit = 1; bit <= 2; bit *= 2) {
    const bool upper = (threadIdx.x & bit) != 0;
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {
      const int low = bit == 1 ? 2 * pair : pair, high = low + bit;
      const uint32_t got = __shfl_xor_sync(0xffffffffu, upper ? words[low] : words[high], bit);
      words[low] = upper ? got : words[low];
      words[high] = upper ? words[high] : got;
    }
  }
}

// Which of 32 neighbouring keys dropout leaves to a row, that is token * H + head: bit k for key 8 group + k. Each of
// the four threads of a quad draws for eight of them.
__device__ __forceinline__ uint32_t kept_of_quad(const Dropout& dropout, uint64_t seed, int64_t row, uint32_t group) {
  const uint32_t t = threadIdx.x % 4;
  const Draws draws = philox(seed, dropout.site, static_cast<uint64_t>(row), group + t);
  uint32_t kept = 0;
#pragma unroll
  for (int i = 0; i < kDraws; ++i) kept |= (draws.at(i) >= dropout.threshold ? 1u : 0u) << i;
  kept <<= kDraws * t;
  kept |= __shfl_xor_sync(0xffffffffu, kept, 1);
  return kept | __shfl_xor_sync(0xffffffffu, kept, 2);
}

}  // namespace kernels
