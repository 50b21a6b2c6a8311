// Runs attention: short sequences and long ones, masks, dropout, bias, grouped heads, and compares with float64.
#include "attention.h"

#include <algorithm>
#include <cmath>

#include "memory.h"

extern "C" {
int32_t kernels_attention_forward(const kernels::AttentionForward* args, void* stream);
}

namespace {

using namespace drivers;
using kernels::Mask;
using kernels::Type;

struct Case {
  const char* name;
  std::vector<int32_t> lengths;
  int64_t filler, longest, heads, kv_heads;
  Mask mask;
  bool bias;
  uint32_t threshold;
  float scale;
  float lowered = 0.0f;             // added to the bias
  std::vector<int32_t> wrong = {};    // boundaries in place of the sums of the lengths
};

// One row of a head in float64: what it should be, and the sum of the magnitudes that it is made of.
struct Row {
  std::vector<double> out, magnitude;
  double lse = 0.0;
};

// A case in the host's memory.
template <class T>
struct Host {
  Case is;
  int64_t size, tokens;
  std::vector<T> qkv;
  std::vector<float> bias;
  std::vector<int32_t> prefix, ends;

  double at(int64_t token, int64_t head, int64_t k) const {
    return static_cast<float>(qkv[(token * (is.heads + 2 * is.kv_heads) + head) * size + k]);
  }

  Row row(int64_t sequence, int64_t start, int i, int64_t head) const {
    const int64_t key_head = is.heads + head / (is.heads / is.kv_heads), value_head = key_head + is.kv_heads;
    Row row{std::vector<double>(size), std::vector<double>(size)};
    const int length = ends[sequence + 1] - ends[sequence];
    std::vector<double> scores(length, -INFINITY);
    for (int j = 0; j < length; ++j) {
      if (!kernels::visible(is.mask, prefix[sequence], i, j)) continue;
      double& score = scores[j] = is.bias ? bias[head * (2 * is.longest - 1) + j - i + is.longest - 1] : 0.0;
      for (int64_t k = 0; k < size; ++k) score += at(start + i, head, k) * at(start + j, key_head, k) * is.scale;
    }
    const double largest = *std::max_element(scores.begin(), scores.end());
    double sum = 0.0;
    for (int j = 0; j < length; ++j) {
      const double weight = std::exp(scores[j] - largest);
      sum += weight;
      const kernels::Draws draws = kernels::philox(42, 7, (start + i) * is.heads + head, j / kernels::kDraws);
      if (draws.at(j % kernels::kDraws) < is.threshold) continue;
      for (int64_t k = 0; k < size; ++k) {
        row.out[k] += weight * at(start + j, value_head, k) * kernels::keep_scale(is.threshold);
        row.magnitude[k] += std::fabs(weight * at(start + j, value_head, k)) * kernels::keep_scale(is.threshold);
      }
    }
    for (int64_t k = 0; k < size; ++k) row.out[k] /= sum, row.magnitude[k] /= sum;
    row.lse = largest + std::log(sum);
    return row;
  }

  // Weights and results are rounded once each, by at most `rounding`.
  void compare(const std::vector<T>& out, const std::vector<float>& lse, double rounding) const {
    int64_t filler = 0;
    double off = 0.0;
    for (size_t s = 0; s + 1 < ends.size(); ++s) {
      const Sequence of(ends, s, tokens, is.longest);
      filler = of.end;
      for (int64_t each = 0; each < (of.end - of.start) * is.heads; ++each) {
        const int64_t i = each / is.heads, head = each % is.heads, token = of.start + i;
        const T* const got = out.data() + (token * is.heads + head) * size;
        if (!of.fits) {
          for (int64_t k = 0; k < size; ++k) require(std::isnan(static_cast<float>(got[k])), "refusing a sequence");
          require(std::isnan(lse[head * tokens + token]), "refusing a sequence");
          continue;
        }
        const Row right = row(static_cast<int64_t>(s), of.start, static_cast<int>(i), head);
        for (int64_t k = 0; k < size; ++k) {
          const double error = std::fabs(static_cast<float>(got[k]) - right.out[k]);
          off = std::fmax(off, std::isnan(error) ? 1e9 : error / (2.1 * rounding * right.magnitude[k] + 1e-6));
        }
        const double error = std::fabs(lse[head * tokens + token] - right.lse);
        off = std::fmax(off, std::isnan(error) ? 1e9 : error / (1e-5 * (1.0 + std::fabs(right.lse))));
      }
    }
    for (int64_t i = filler * is.heads * size; i < tokens * is.heads * size; ++i) {
      if (static_cast<float>(out[i]) != 0.0f) off = 1e9;
    }
    for (int64_t i = filler; i < tokens; ++i) off = lse[i] == 0.0f ? off : 1e9;
    if (off > 1.0) std::fprintf(stderr, "%s is off: %g times what rounding explains\n", is.name, off);
    require(off <= 1.0, "the comparison with float64");
  }
};

template <class T>
void run(Type type, int64_t size, const Case& is) {
  std::vector<int32_t> ends{0}, first_ones;
  for (int32_t length : is.lengths) {
    ends.push_back(ends.back() + length);
    first_ones.push_back(is.mask == Mask::kPrefix ? length / 3 : 0);
  }
  const int64_t tokens = ends.back() + is.filler, sequences = static_cast<int64_t>(is.lengths.size());
  if (!is.wrong.empty()) ends = is.wrong;
  Numbers numbers(static_cast<uint32_t>(tokens * size));
  Host<T> host{is, size, tokens, numbers.floats<T>(tokens * (is.heads + 2 * is.kv_heads) * size),
               numbers.floats<float>(is.heads * (2 * is.longest - 1)), first_ones, ends};
  for (float& each : host.bias) each += is.lowered;
  Array<T> qkv(static_cast<int64_t>(host.qkv.size())), out(tokens * is.heads * size);
  Array<float> bias(static_cast<int64_t>(host.bias.size())), lse(is.heads * tokens);
  Array<int32_t> boundaries(sequences + 1), prefix(sequences);
  Array<uint64_t> seed(1);
  seed.fill({42});
  qkv.fill(host.qkv);
  bias.fill(host.bias);
  boundaries.fill(ends);
  prefix.fill(first_ones);
  out.fill(std::vector<T>(tokens * is.heads * size, static_cast<T>(1000.0f)));
  lse.fill(std::vector<float>(is.heads * tokens, 1000.0f));

  kernels::AttentionForward args{};
  args.in.qkv = qkv.data();
  args.in.boundaries = boundaries.data();
  args.in.prefix = is.mask == Mask::kPrefix ? prefix.data() : nullptr;
  args.in.bias = is.bias ? bias.data() : nullptr;
  args.in.tokens = tokens;
  args.in.sequences = sequences;
  args.in.heads = is.heads;
  args.in.kv_heads = is.kv_heads;
  args.in.size = size;
  args.in.longest = is.longest;
  args.in.type = type;
  args.in.mask = is.mask;
  args.in.scale = is.scale;
  args.in.dropout = {seed.data(), 7, is.threshold};
  args.out = out.data();
  args.lse = lse.data();
  require(kernels_attention_forward(&args, nullptr) == kernels::kOk, "kernels_attention_forward");

  // Where boundaries fall nothing is promised but that all stays within the arrays
  if (!std::is_sorted(ends.begin(), ends.end())) return;
  host.compare(out.values(), lse.values(), type == Type::kBFloat16 ? 0x1p-8 : 0x1p-11);
  Digest digest;
  digest.add(out);
  digest.add(lse);
  digest.print(is.name);
}

}  // namespace

int main() {
  using B = __nv_bfloat16;
  constexpr Type kB = Type::kBFloat16, kH = Type::kFloat16;
  constexpr uint32_t kDrawn = 6739;  // for one of the keys of short_prefix
  run<B>(kB, 64, {"short", {1, 0, 40, 17, 95}, 3, 95, 4, 2, Mask::kFull, false, 0, 0.125f});
  run<B>(kB, 32, {"short_causal", {70, 2}, 1, 70, 1, 1, Mask::kCausal, false, 6554, 4.0f});
  run<B>(kB, 96, {"short_prefix", {37}, 0, 64, 1, 1, Mask::kPrefix, true, kDrawn, 0.1f});
  run<__half>(kH, 128, {"short_half", {9, 21}, 0, 21, 2, 2, Mask::kFull, true, 0, -0.5f});
  run<__half>(kH, 32, {"short_longest", {256}, 0, 256, 1, 1, Mask::kFull, false, 6554, 0.2f});
  run<B>(kB, 32, {"one_token", {1, 1, 1}, 0, 1, 1, 1, Mask::kCausal, false, 0, 1.0f});
  run<B>(kB, 32, {"no_scale", {6}, 0, 6, 1, 1, Mask::kCausal, false, 0, 0.0f});
  run<B>(kB, 32, {"tiles", {5, 0, 159, 1}, 7, 300, 2, 1, Mask::kFull, false, 0, 8.0f});
  run<B>(kB, 32, {"tiles_causal", {260}, 0, 2048, 1, 1, Mask::kCausal, false, 6554, 0.2f});
  run<__half>(kH, 64, {"tiles_prefix", {131, 3}, 2, 257, 1, 1, Mask::kPrefix, true, 0, 0.125f});
  run<B>(kB, 64, {"tiles_grouped", {140}, 1, 2048, 4, 2, Mask::kCausal, false, 0, 0.1f});
  run<B>(kB, 96, {"tiles_wide", {129}, 0, 300, 1, 1, Mask::kFull, false, 6554, 0.1f});
  run<__half>(kH, 128, {"tiles_half", {66}, 0, 2048, 1, 1, Mask::kFull, true, 6554, 0.1f});
  run<__half>(kH, 32, {"short_rising", {96}, 0, 96, 1, 1, Mask::kFull, false, 0, 8.0f});  // by more than 2^16
  run<__half>(kH, 32, {"tiles_rising", {96}, 0, 300, 1, 1, Mask::kFull, false, 0, 8.0f});
  run<B>(kB, 32, {"short_low", {40}, 0, 40, 1, 1, Mask::kCausal, true, 0, 0.1f, -1e30f});
  run<B>(kB, 32, {"tiles_low", {40}, 0, 300, 1, 1, Mask::kFull, true, 0, 0.1f, -1e30f});
  run<B>(kB, 32, {"tiles_negative", {70}, 0, 300, 1, 1, Mask::kCausal, false, 0, -0.3f});
  run<B>(kB, 32, {"tiles_no_scale", {70}, 0, 300, 1, 1, Mask::kCausal, false, 0, 0.0f});
  for (int64_t longest : {12, 300}) {  // in both ways
    const auto misfit = [&](const char* name, std::vector<int32_t> boundaries) {
      run<B>(kB, 32, {name, {4, 8, 9}, 2, longest, 1, 1, Mask::kPrefix, false, 0, 1.0f, 0.0f, boundaries});
    };
    misfit("begins_late", {3, 4, 12, 21});
    misfit("begins_before", {-3, 4, 12, 21});
    misfit("ends_late", {0, 4, 12, 24});
    misfit("goes_on_behind", {0, 4, 30, 1000000});
    misfit("far_off", {INT32_MIN, -5, INT32_MAX, INT32_MAX});
    misfit("falls", {0, 12, 4, 21});
    misfit("falls_far", {0, 1000, -1000, 40});
    misfit("falls_to_the_end", {INT32_MAX, 20, 10, INT32_MIN});
  }
  run<B>(kB, 32, {"too_long", {9, 5, 3}, 1, 5, 1, 1, Mask::kFull, false, 0, 1.0f});
  run<B>(kB, 32, {"too_long_tiles", {301, 5}, 1, 300, 1, 1, Mask::kFull, true, 0, 1.0f});
  run<B>(kB, 32, {"filler_alone", {}, 300, 5, 2, 1, Mask::kFull, false, 0, 1.0f});
  run<B>(kB, 32, {"filler_alone_tiles", {}, 300, 512, 2, 1, Mask::kFull, false, 0, 1.0f});
  run<B>(kB, 32, {"no_tokens", {0}, 0, 5, 1, 1, Mask::kFull, false, 0, 1.0f});
}
