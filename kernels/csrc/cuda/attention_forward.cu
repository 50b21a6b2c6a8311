// Attention within the sequences of a packed batch, on tensor cores (Dao 2023, arXiv:2307.08691).
//
// Each warp works at queries of its own: ../common/attention_rows.h. Keys and values reach shared memory in two ways.
// attention_tiles: a block has 64 or 128 queries of a head, and tiles of keys come one after the other, the next while
// the warps work at this one. attention_sequences, of short ones: a block has all queries of a head of a sequence, and
// all its keys and values come at once.
#include "../common/attention_rows.h"

namespace kernels {
namespace {

constexpr int kTileKeys = 64;
constexpr int kTileWarps = 4;
constexpr int kTileThreads = kTileWarps * kWarp;
constexpr int kShort = 256;  // the longest sequence that attention_sequences is made for
constexpr int kShortThreads = kShort / kStep * kWarp;
constexpr int kFillerTokens = 1024;  // of a block of attention_sequences, about

// 32 queries a warp halve what it reads of keys and values, where there are registers for them.
template <int kSize, Extra kExtra>
constexpr int kMatricesOf = kSize == 32 || (kSize == 64 && kExtra == Extra::kNone) ? 2 : 1;

// Blocks of attention_tiles for whose registers a multiprocessor has room.
template <int kSize, Extra kExtra>
constexpr int kTileBlocks = kSize == (kExtra == Extra::kNone ? 64 : kExtra == Extra::kBias ? 128 : 0) ? 2 : 3;

// The tokens [first, last) of a head get `value`; a block does its part of this.
template <class T, int kSize>
__device__ __forceinline__ void fill_rows(const AttentionForward& args, int head, int64_t first, int64_t last,
                                          float value, int64_t part, int64_t parts) {
  constexpr int kPacks = kSize / kPack;
  float values[kPack];
#pragma unroll
  for (int i = 0; i < kPack; ++i) values[i] = value;
  for (int64_t i = part * blockDim.x + threadIdx.x; i < (last - first) * kPacks; i += parts * blockDim.x) {
    const int64_t token = first + i / kPacks, pack = i % kPacks;
    store(static_cast<T*>(args.out), (token * args.in.heads + head) * kPacks + pack, values);
    if (pack == 0) args.lse[head * args.in.tokens + token] = value;
  }
}

template <class T, int kSize, Extra kExtra>
__global__ void __launch_bounds__(kTileThreads, kTileBlocks<kSize, kExtra>)
    attention_tiles(const AttentionForward args) {
  KERNELS_DYNAMIC_SHARED(memory);
  constexpr int kMatrices = kMatricesOf<kSize, kExtra>, kRows = kTileWarps * kMatrices * kQueries;
  const Attention& in = args.in;
  const int heads = static_cast<int>(in.heads), number = static_cast<int>(blockIdx.x) / heads;
  const int own_head = static_cast<int>(blockIdx.x) % heads;
  // Those that come last in a sequence see most keys under some masks: they begin first
  const Tile tile = find_tile(in, gridDim.x / heads - 1 - number, kRows);
  if (tile.empty()) return;
  if (tile.sequence == in.sequences || !tile.fits) {
    const int64_t first = tile.start + tile.first, last = tile.start + min(tile.length, tile.first + kRows);
    fill_rows<T, kSize>(args, own_head, first, last, tile.sequence == in.sequences ? 0.0f : NAN, 0, 1);
    return;
  }
  Head head = head_of(in, tile.sequence, tile.start, tile.length, own_head);
  asm volatile("" : "+r"(head.start), "+r"(head.length));  // nvcc spills where it knows their bounds
  T* const keys = reinterpret_cast<T*>(memory);
  T* const values = keys + 2 * kTileKeys * kRowStride<kSize>;
  const T* const key = key_of<T, kSize>(in, head.start, own_head);
  const auto copy = [&](int first) {
    const int to = first % (2 * kTileKeys) * kRowStride<kSize>;
    copy_keys<T, kSize>(keys + to, values + to, in, key, first, kTileKeys, head.length);
    end_copies();
  };
  copy(0);
  Rows<kSize, kMatrices> rows;
  begin_rows<T>(rows, in, head, tile.first + static_cast<int>(threadIdx.x) / kWarp * kMatrices * kQueries);
  const int limit =
      rows.first < head.length ? head.limit(min(head.length, rows.first + kMatrices * kQueries) - 1) : 0;
  const int end = head.limit(tile.first + kRows - 1);
  for (int first = 0; first < end; first += kTileKeys) {
    wait_for_copies<0>();
    __syncthreads();  // all have this tile, and are done with the last
    if (first + kTileKeys < end) copy(first + kTileKeys);
#pragma unroll 1
    for (int step = first; step < min(first + kTileKeys, limit); step += kStep) {
      const int own = step % (2 * kTileKeys) * kRowStride<kSize>;
      look<kExtra>(rows, in, head, keys + own, values + own, step);
    }
  }
  write_rows<T>(rows, args, head);
}

template <class T, int kSize, Extra kExtra>
__global__ void __launch_bounds__(kShortThreads, kSize <= 64 ? 2 : 1)
    attention_sequences(const AttentionForward args) {
  KERNELS_DYNAMIC_SHARED(memory);
  const Attention& in = args.in;
  const int heads = static_cast<int>(in.heads), own_head = static_cast<int>(blockIdx.x) % heads;
  const int sequence = static_cast<int>(blockIdx.x) / heads;
  const Tile all = find_sequence(in, min(sequence, static_cast<int>(in.sequences)));
  if (sequence >= in.sequences) {
    fill_rows<T, kSize>(args, own_head, all.start, in.tokens, 0.0f, sequence - in.sequences,
                        gridDim.x / heads - in.sequences);
    return;
  }
  if (!all.fits) fill_rows<T, kSize>(args, own_head, all.start, all.start + all.length, NAN, 0, 1);
  if (!all.fits || all.length == 0) return;
  const Head head = head_of(in, all.sequence, all.start, all.length, own_head);
  const int keys = (head.length + kStep - 1) / kStep * kStep;
  T* const shared_keys = reinterpret_cast<T*>(memory);
  T* const shared_values = shared_keys + keys * kRowStride<kSize>;
  const T* const key = key_of<T, kSize>(in, all.start, own_head);
  copy_keys<T, kSize>(shared_keys, shared_values, in, key, 0, keys, head.length);
  end_copies();
  wait_for_copies<0>();
  __syncthreads();
  const int warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  Rows<kSize, 1> rows;
#pragma unroll 1
  for (int turn = 0; turn < 2; ++turn) {  // a warp that had few keys to look at has many then
    const int first = kQueries * (turn == 0 ? warp : 2 * warps - 1 - warp);
    if (first >= head.length) continue;
    begin_rows<T>(rows, in, head, first);
    const int limit = head.limit(min(head.length, first + kQueries) - 1);
#pragma unroll 1
    for (int step = 0; step < limit; step += kStep) {
      const int own = step * kRowStride<kSize>;
      look<kExtra>(rows, in, head, shared_keys + own, shared_values + own, step);
    }
    write_rows<T>(rows, args, head);
  }
}

// Launches so many blocks of each head.
template <auto kKernel>
int32_t launch(const AttentionForward& args, int64_t blocks, int threads, int bytes, void* stream) {
  if (blocks * args.in.heads > INT32_MAX) return kUnsupported;
  if (const int32_t status = allow_shared<kKernel, kSharedBytes>(); status != kOk) return status;
  const dim3 grid(static_cast<unsigned>(blocks * args.in.heads));
  KERNELS_LAUNCH(kKernel, grid, dim3(threads), bytes, stream, args);
  return KERNELS_LAUNCH_STATUS();
}

template <class T, int kSize, Extra kExtra>
int32_t forward(const AttentionForward& args, void* stream) {
  constexpr int kRowBytes = 2 * kRowStride<kSize> * sizeof(T);  // of a key and a value
  const int64_t steps = (args.in.longest + kStep - 1) / kStep;
  if (steps * kStep <= kShort && steps * kStep * kRowBytes <= kSharedBytes) {
    const int64_t blocks = args.in.sequences + args.in.tokens / kFillerTokens + 1;
    const int warps = static_cast<int>(steps), bytes = warps * kStep * kRowBytes;
    return launch<attention_sequences<T, kSize, kExtra>>(args, blocks, warps * kWarp, bytes, stream);
  }
  static_assert(2 * kTileKeys * kRowBytes <= kSharedBytes);
  const int64_t blocks = tiles_of(args.in, kTileWarps * kMatricesOf<kSize, kExtra> * kQueries);
  return launch<attention_tiles<T, kSize, kExtra>>(args, blocks, kTileThreads, 2 * kTileKeys * kRowBytes, stream);
}

template <class T, int kSize>
int32_t with_extra(const AttentionForward& args, void* stream) {
  if (args.in.bias != nullptr) return forward<T, kSize, Extra::kBias>(args, stream);
  if (args.in.dropout.threshold != 0) return forward<T, kSize, Extra::kDropout>(args, stream);
  return forward<T, kSize, Extra::kNone>(args, stream);
}

template <class T>
int32_t with_size(const AttentionForward& args, void* stream) {
  switch (args.in.size) {
    case 32: return with_extra<T, 32>(args, stream);
    case 64: return with_extra<T, 64>(args, stream);
    case 96: return with_extra<T, 96>(args, stream);
    case 128: return with_extra<T, 128>(args, stream);
    default: return kUnsupported;
  }
}

}  // namespace

KERNELS_EXPORT int32_t kernels_attention_forward(const AttentionForward* args, void* stream) {
  if (args->in.tokens == 0) return kOk;
  if (args->in.type == Type::kBFloat16) return with_size<__nv_bfloat16>(*args, stream);
  return args->in.type == Type::kFloat16 ? with_size<__half>(*args, stream) : kUnsupported;
}

}  // namespace kernels
