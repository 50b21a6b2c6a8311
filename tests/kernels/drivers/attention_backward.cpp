// Runs the gradients of packed attention: both paths, all masks, dropout, bias, groups of heads, filler, sequences that
// are empty or too long; and compares them with sums in double.
#include "attention.h"

#include <algorithm>
#include <cmath>

#include "memory.h"

extern "C" {
int32_t kernels_attention_backward(const kernels::AttentionBackward* args, void* stream);
}

namespace {

using namespace drivers;
using kernels::Mask;
using kernels::Type;

constexpr uint32_t kSite = 7;
constexpr uint64_t kSeed = 42;

struct Case {
  const char* name;
  Mask mask;
  int64_t heads, kv_heads, size, longest, filler;
  std::vector<int> lengths, prefix;
  uint32_t threshold = 0;
  bool bias = false, workspace = true;
  int64_t blocks = 3;
  double scale = 3.0;               // times the root of `size`
  std::vector<int32_t> wrong = {};  // boundaries in place of the sums of the lengths

  int64_t tokens() const {
    int64_t sum = filler;
    for (int each : lengths) sum += each;
    return sum;
  }
  int64_t columns() const { return 2 * longest - 1; }
};

using Numbers64 = std::vector<double>;

// A head of queries of a sequence, forward and backward in double. The arrays are those of the batch.
struct Head {
  const Case& of;
  int64_t start, head;
  int length, prefix;
  double scale;
  const Numbers64 &qkv, &dout, &bias;
  Numbers64 &out, &lse, &dqkv, &dbias;

  int64_t at(int token, int64_t which) const {
    return ((start + token) * (of.heads + 2 * of.kv_heads) + which) * of.size;
  }
  int64_t k_head() const { return of.heads + head / (of.heads / of.kv_heads); }
  int64_t v_head() const { return k_head() + of.kv_heads; }
  int64_t out_at(int token) const { return ((start + token) * of.heads + head) * of.size; }
  int64_t bias_at(int i, int j) const { return head * of.columns() + j - i + of.longest - 1; }

  static double product(const Numbers64& a, int64_t i, const Numbers64& b, int64_t j, int64_t size) {
    double sum = 0.0;
    for (int64_t n = 0; n < size; ++n) sum += a[i + n] * b[j + n];
    return sum;
  }

  double dropped(int i, int j) const {
    const kernels::Draws draws = kernels::philox(kSeed, kSite, (start + i) * of.heads + head, j / kernels::kDraws);
    return draws.at(j % kernels::kDraws) < of.threshold ? 0.0 : kernels::keep_scale(of.threshold);
  }

  void row(int i) {
    Numbers64 p(length);
    double sum = 0.0;
    for (int j = 0; j < length; ++j) {
      if (!kernels::visible(of.mask, prefix, i, j)) continue;
      const double score = scale * product(qkv, at(i, head), qkv, at(j, k_head()), of.size);
      p[j] = std::exp(score + (of.bias ? bias[bias_at(i, j)] : 0.0));
      sum += p[j];
    }
    lse[head * of.tokens() + start + i] = std::log(sum);
    for (int j = 0; j < length; ++j) {
      p[j] /= sum;
      for (int64_t n = 0; n < of.size; ++n) {
        out[out_at(i) + n] += p[j] * dropped(i, j) * qkv[at(j, v_head()) + n];
        dqkv[at(j, v_head()) + n] += p[j] * dropped(i, j) * dout[out_at(i) + n];
      }
    }
    const double delta = product(out, out_at(i), dout, out_at(i), of.size);
    for (int j = 0; j < length; ++j) {
      const double dp = product(dout, out_at(i), qkv, at(j, v_head()), of.size) * dropped(i, j);
      const double ds = p[j] * (dp - delta);
      if (of.bias && p[j] != 0.0) dbias[bias_at(i, j)] += ds;
      for (int64_t n = 0; n < of.size; ++n) {
        dqkv[at(i, head) + n] += scale * ds * qkv[at(j, k_head()) + n];
        dqkv[at(j, k_head()) + n] += scale * ds * qkv[at(i, head) + n];
      }
    }
  }
};

// What the results should be.
struct Right {
  Numbers64 out, lse, dqkv, dbias;
  std::vector<int32_t> boundaries = {0};

  Right(const Case& of, double scale, const Numbers64& qkv, const Numbers64& dout, const Numbers64& bias)
      : out(dout.size()), lse(of.heads * of.tokens()), dqkv(qkv.size()), dbias(bias.size()) {
    for (int length : of.lengths) boundaries.push_back(boundaries.back() + length);
    if (!of.wrong.empty()) boundaries = of.wrong;
    for (size_t s = 0; s < of.lengths.size(); ++s) {
      const drivers::Sequence is(boundaries, s, of.tokens(), of.longest);
      const int length = static_cast<int>(is.end - is.start), prefix = of.mask == Mask::kPrefix ? of.prefix[s] : 0;
      const int64_t numbers = (of.heads + 2 * of.kv_heads) * of.size;
      if (!is.fits) std::fill_n(dqkv.begin() + is.start * numbers, length * numbers, NAN);
      if (!is.fits) std::fill(dbias.begin(), dbias.end(), NAN);
      for (int64_t h = 0; h < of.heads && is.fits; ++h) {
        Head head{of, is.start, h, length, prefix, scale, qkv, dout, bias, out, lse, dqkv, dbias};
        for (int i = 0; i < length; ++i) head.row(i);
      }
    }
  }
};

template <class T>
Numbers64 widened(const std::vector<T>& values) {
  return Numbers64(values.begin(), values.end());
}

template <class T>
std::vector<T> narrowed(const Numbers64& values) {
  std::vector<T> out(values.size());
  for (size_t i = 0; i < values.size(); ++i) out[i] = static_cast<T>(static_cast<float>(values[i]));
  return out;
}

int wrong = 0;

// Results and what is right may differ by `error` of the largest; NaN where that is.
template <class T>
void compare(const Case& of, const char* what, const Array<T>& found, const Numbers64& right, double error) {
  double largest = 0.0, off = 0.0;
  const std::vector<T> values = found.values();
  for (size_t i = 0; i < right.size(); ++i) {
    const double value = static_cast<float>(values[i]);
    if (std::isnan(right[i]) != std::isnan(value)) off = INFINITY;
    if (std::isnan(right[i])) continue;
    largest = std::max(largest, std::fabs(right[i]));
    off = std::max(off, std::fabs(value - right[i]));
  }
  if (off <= error * largest) return;
  std::fprintf(stderr, "%s: %s is off by %g of %g\n", of.name, what, off, largest);
  wrong = 1;
}

template <class T>
void run(const Case& of, Type type) {
  const int64_t tokens = of.tokens(), heads = of.heads + 2 * of.kv_heads, sequences = of.lengths.size();
  const double scale = of.scale / std::sqrt(of.size);
  Numbers numbers(static_cast<uint32_t>(tokens * of.size));
  const std::vector<T> qkv_values = numbers.floats<T>(tokens * heads * of.size);
  const std::vector<T> dout_values = numbers.floats<T>(tokens * of.heads * of.size);
  const std::vector<float> bias_values = numbers.floats<float>(of.heads * of.columns());
  const Numbers64 qkv64 = widened(qkv_values), dout64 = widened(dout_values), bias64 = widened(bias_values);
  const Right right(of, scale, qkv64, dout64, bias64);
  Array<T> qkv(qkv64.size()), out(dout64.size()), dout(dout64.size()), dqkv(qkv64.size());
  Array<float> lse(right.lse.size()), delta(right.lse.size()), bias(bias64.size()), dbias(bias64.size());
  Array<float> dq(of.workspace ? of.heads * tokens * of.size : 0), partial(of.bias ? of.blocks * bias64.size() : 0);
  Array<int32_t> starts(sequences + 1), prefix(of.prefix.size());
  Array<uint64_t> seed(1);
  qkv.fill(qkv_values), dout.fill(dout_values), bias.fill(bias_values), starts.fill(right.boundaries);
  out.fill(narrowed<T>(right.out)), lse.fill(narrowed<float>(right.lse)), prefix.fill(of.prefix), seed.fill({kSeed});
  dqkv.fill(std::vector<T>(qkv64.size(), static_cast<T>(NAN)));
  for (Array<float>* each : {&delta, &dbias, &dq, &partial}) each->fill(std::vector<float>(each->values().size(), NAN));

  kernels::AttentionBackward args{};
  args.in.qkv = qkv.data();
  args.in.boundaries = starts.data();
  args.in.prefix = of.mask == Mask::kPrefix ? prefix.data() : nullptr;
  args.in.bias = of.bias ? bias.data() : nullptr;
  args.in.tokens = tokens;
  args.in.sequences = sequences;
  args.in.heads = of.heads;
  args.in.kv_heads = of.kv_heads;
  args.in.size = of.size;
  args.in.longest = of.longest;
  args.in.type = type;
  args.in.mask = of.mask;
  args.in.scale = static_cast<float>(scale);
  args.in.dropout = {seed.data(), kSite, of.threshold};
  args.out = out.data();
  args.lse = lse.data();
  args.dout = dout.data();
  args.dqkv = dqkv.data();
  args.delta = delta.data();
  args.dq = of.workspace ? dq.data() : nullptr;
  args.dbias = of.bias ? dbias.data() : nullptr;
  args.partial = of.bias ? partial.data() : nullptr;
  args.blocks = of.blocks;
  require(kernels_attention_backward(&args, nullptr) == kernels::kOk, "kernels_attention_backward");

  // Where boundaries fall nothing is promised but that all stays within the arrays
  if (!std::is_sorted(right.boundaries.begin(), right.boundaries.end())) return;
  const double error = type == Type::kFloat16 ? 1e-3 : 6e-3;
  compare(of, "dqkv", dqkv, right.dqkv, error);
  Digest digest;
  digest.add(dqkv);
  if (of.bias) {
    compare(of, "dbias", dbias, right.dbias, error);
    digest.add(dbias);
  }
  digest.print(of.name);
}

// Boundaries that do not fit 23 tokens, in each of the ways.
void misfit(const char* name, const std::vector<int32_t>& boundaries) {
  const auto run_as = [&](int64_t longest, bool workspace, bool bias) {
    run<__nv_bfloat16>({name, Mask::kPrefix, 1, 1, 32, longest, 2, {4, 8, 9}, {1, 9, 2}, 0, bias, workspace, 2, 3.0,
                        boundaries}, Type::kBFloat16);
  };
  run_as(12, true, false);
  run_as(70, false, false);
  run_as(12, true, true);
}

void refuses(Type type, int64_t size) {
  kernels::AttentionBackward args{};
  args.in.type = type;
  args.in.size = size;
  require(kernels_attention_backward(&args, nullptr) == kernels::kUnsupported, "refusing a size or type");
}

}  // namespace

int main() {
  using BFloat16 = __nv_bfloat16;
  const auto bf16 = Type::kBFloat16, fp16 = Type::kFloat16;
  const uint32_t tenth = 6554;
  run<BFloat16>({"whole_full", Mask::kFull, 2, 1, 64, 131, 5, {131, 0, 66, 1}, {}, tenth}, bf16);
  run<__half>({"whole_causal", Mask::kCausal, 3, 3, 32, 140, 0, {17, 140, 64}, {}}, fp16);
  run<BFloat16>({"whole_prefix", Mask::kPrefix, 4, 2, 96, 80, 1, {80, 33}, {5, 40}, tenth}, bf16);
  run<__half>({"whole_one_tile", Mask::kFull, 1, 1, 128, 64, 0, {0, 50, 64, 3, 0}, {}}, fp16);
  run<BFloat16>({"alone_causal", Mask::kCausal, 2, 2, 64, 300, 3, {150, 2}, {}, tenth}, bf16);
  run<__half>({"alone_prefix", Mask::kPrefix, 2, 1, 128, 100, 0, {100, 35}, {70, 1}, 0, false, false}, fp16);
  run<BFloat16>({"bias_full", Mask::kFull, 2, 1, 32, 75, 2, {75, 3, 0, 40, 70}, {}, tenth, true}, bf16);
  run<__half>({"bias_causal", Mask::kCausal, 2, 2, 96, 40, 0, {40, 7}, {}, 0, true, true, 9}, fp16);
  run<BFloat16>({"too_long_whole", Mask::kFull, 2, 1, 32, 20, 1, {4, 21, 20}, {}}, bf16);
  run<BFloat16>({"too_long_alone", Mask::kCausal, 2, 2, 32, 70, 1, {4, 71, 20}, {}, 0, false, false}, bf16);
  run<BFloat16>({"too_long_bias", Mask::kFull, 2, 1, 32, 20, 1, {4, 21, 20}, {}, 0, true}, bf16);
  run<BFloat16>({"whole_negative", Mask::kFull, 2, 1, 32, 40, 1, {40}, {}, tenth, false, true, 1, -2.0}, bf16);
  run<__half>({"alone_negative", Mask::kCausal, 1, 1, 96, 70, 1, {20}, {}, 0, false, false, 1, -3.0}, fp16);
  run<BFloat16>({"bias_negative", Mask::kCausal, 1, 1, 32, 40, 1, {40}, {}, 0, true, true, 1, -3.0}, bf16);
  run<BFloat16>({"whole_no_scale", Mask::kCausal, 2, 1, 32, 40, 1, {40}, {}, 0, false, true, 1, 0.0}, bf16);
  run<BFloat16>({"alone_no_scale", Mask::kFull, 1, 1, 32, 70, 1, {40}, {}, 0, false, false, 1, 0.0}, bf16);
  misfit("begins_late", {3, 4, 12, 21});
  misfit("begins_before", {-3, 4, 12, 21});
  misfit("ends_late", {0, 4, 12, 24});
  misfit("goes_on_behind", {0, 4, 30, 1000000});
  misfit("far_off", {INT32_MIN, -5, INT32_MAX, INT32_MAX});
  misfit("falls", {0, 12, 4, 21});
  misfit("falls_far", {0, 1000, -1000, 40});
  misfit("falls_to_the_end", {INT32_MAX, 20, 10, INT32_MIN});
  run<BFloat16>({"all_filler", Mask::kFull, 2, 1, 32, 8, 9, {}, {}}, bf16);
  run<__half>({"bias_of_nothing", Mask::kFull, 1, 1, 32, 8, 0, {0}, {}, 0, true}, fp16);
  refuses(Type::kFloat32, 64);
  refuses(fp16, 48);
  return wrong;
}
