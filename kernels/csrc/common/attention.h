// The arguments of attention within each sequence of a packed batch (Vaswani et al. 2017, arXiv:1706.03762).
//
// N tokens, S sequences, H heads of queries, G of keys and values (query head h sees head h / (H / G) of those), K
// numbers in a head, L a bound of the lengths. Query i of a sequence sees key j, both counted within it, if
// visible(mask, prefix, i, j).
//
//   s = scale q k + bias[j - i]     p = exp(s - lse)     out = sum over j of dropout(p) v
//
// Dropout of (token t of the batch, head h, key j) is draw j % 8 of philox(seed, site, t H + h, j / 8). What lies behind
// the last boundary is filler: out, lse and gradients are 0 there, and nothing sees it.
#pragma once

#include "api.h"
#include "philox.h"

namespace kernels {

enum class Mask : int32_t { kFull = 0, kCausal = 1, kPrefix = 2 };

struct Attention {
  const void* qkv;            // [N, H + 2 G, K]: the heads of queries, of keys, of values
  const int32_t* boundaries;  // [S + 1]: 0, the running sum of the lengths, which ends at N or before; equal ones: empty
  const int32_t* prefix;      // [S], of Mask::kPrefix: how many first tokens all see
  const float* bias;          // [H, 2 L - 1], for j - i + L - 1; or null
  int64_t tokens, sequences, heads, kv_heads, size, longest;  // N, S, H, G, K, L
  Type type;                                                  // of qkv, out and their gradients
  Mask mask;
  float scale;
  Dropout dropout;
};

struct AttentionForward {
  Attention in;
  void* out;   // [N, H, K]
  float* lse;  // [H, N]: log of the sum of exp(s)
};

// The gradients of qkv and of the bias; the scores are computed again.
struct AttentionBackward {
  Attention in;
  const void* out;   // [N, H, K]
  const float* lse;  // [H, N]
  const void* dout;  // [N, H, K]
  void* dqkv;        // [N, H + 2 G, K]
  float* delta;      // [H, N], workspace: sums of dout out
  float* dq;         // [H, N, K], workspace of a GPU where wants_dq says so; or null, which costs time
  float* dbias;      // [H, 2 L - 1], or null
  float* partial;    // [blocks, H, 2 L - 1], workspace of dbias: what is in it before does not matter
  int64_t blocks;    // that the sums of dbias are dealt to, any number from 1 on
};

constexpr int64_t kKeyTile = 64;        // keys that a block of a GPU has at once in the gradient
constexpr int64_t kWholeLongest = 256;  // where one block takes a sequence and a head of keys in the gradient

// Whether the gradient on a GPU has a use for AttentionBackward::dq.
inline bool wants_dq(const Attention& in) {
  return in.longest > kKeyTile && in.longest <= kWholeLongest && in.bias == nullptr;
}

// Whether query i sees key j.
KERNELS_HD bool visible(Mask mask, int prefix, int i, int j) { return mask == Mask::kFull || j <= i || j < prefix; }

}  // namespace kernels
