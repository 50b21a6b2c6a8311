// Attention of packed sequences: flash attention (Dao et al. 2022, arXiv:2205.14135) for the caches of a core.
//
// The keys and values of a sequence's head are laid out once, for all heads of queries that share them. Then a block of
// queries at a time: its scores stay in the second cache until the products with them are made. The backward pass makes
// them again from the logarithms of their sums, a tile of keys at a time.
//
// Compiled once for each level of instructions (build.py): KERNELS_LEVEL names it.
#include "attention.h"

#include "attention_parts.h"

namespace kernels {
namespace {

constexpr int64_t kQueries = 72;                 // of a block
constexpr int64_t kTileKeys = 128;               // of a tile of the backward pass
constexpr int64_t kPieceQueries = 4 * kQueries;  // that threads of the forward pass share out

// Filler tokens are zero: the last ones of [rows, tokens, width].
template <class T>
void clear_filler(const Attention& in, int64_t rows, int64_t width, T* out) {
  const int64_t from = in.boundaries[in.sequences];
  if (from == in.tokens) return;
  for (int64_t row = 0; row < rows; ++row) {
    std::memset(out + (row * in.tokens + from) * width, 0, (in.tokens - from) * width * sizeof(T));
  }
}

// The forward pass of a thread, and its room: what a sequence's head is laid out in, and a block of scores.
template <class T>
class Forward {
 public:
  explicit Forward(const AttentionForward& args)
      : args_(args), in_(args.in), words_(steps_of<Word>(in_.size)), longest_(longest_of(in_)),
        rows_(round_up(longest_, kQueries) * words_), keys_(longest_ * words_),
        values_(longest_ * round_up(in_.size, kPanel)), scores_(kQueries * longest_), weights_(kQueries * longest_),
        out_(kQueries * in_.size), factor_(longest_ + kDraws) {}

  // The queries [first, last) of a head.
  void piece(int64_t number, int64_t head, int64_t first, int64_t last) {
    const Sequence sequence(in_, number);
    const int64_t kv_head = head / (in_.heads / in_.kv_heads);
    if (number != number_ || kv_head != kv_head_) lay_out(sequence, kv_head);
    number_ = number, kv_head_ = kv_head;
    for (; first < last; first += kQueries) block(sequence, head, first);
  }

 private:
  using Word = WordOf<T>;

  void lay_out(const Sequence& sequence, int64_t kv_head) {
    const int64_t heads = in_.heads + 2 * in_.kv_heads;
    const Rows<const T> k(in_.qkv, in_, heads, in_.heads + kv_head, sequence.start);
    const Rows<const T> v(in_.qkv, in_, heads, in_.heads + in_.kv_heads + kv_head, sequence.start);
    read_rows(k.at, k.stride, sequence.length, in_.size, rows_.data());
    transposed(rows_.data(), sequence.length, words_, keys_.data());
    read_rows(v.at, v.stride, sequence.length, in_.size, rows_.data());
    as_steps(rows_.data(), sequence.length, in_.size, values_.data());
  }

  void block(const Sequence& sequence, int64_t head, int64_t first) {
    const Right<Word> keys{keys_.data(), words_}, values{values_.data(), steps_of<Word>(sequence.length)};
    const int64_t token = sequence.start + first;
    const int64_t count = sequence.length - first < kQueries ? sequence.length - first : kQueries;
    const int64_t seen = sequence.seen(first + count - 1), width = round_up(seen, kLanes);
    const Rows<const T> q(in_.qkv, in_, in_.heads + 2 * in_.kv_heads, head, token);
    const Rows<T> out(args_.out, in_, in_.heads, head, token);
    float sums[kQueries];
    read_rows(q.at, q.stride, count, in_.size, rows_.data());
    multiply(Left<Word>{rows_.data(), words_, 1}, count, keys, words_, seen, scores_.data(), width, false);
    for (int64_t i = 0; i < count; ++i) {
      float* scores = scores_.data() + i * width;
      score_row(in_, sequence, head, first + i, 0, width, scores);
      sums[i] = softmax_row(scores, width, args_.lse + head * in_.tokens + token + i);
      if (in_.dropout.threshold != 0) drop(scores, width, (token + i) * in_.heads + head);
    }
    const Left<Word> weights = left_of(scores_.data(), count, width, weights_.data());
    multiply(weights, count, values, steps_of<Word>(seen), in_.size, out_.data(), in_.size, false);
    for (int64_t i = 0; i < count; ++i) write_row(out_.data() + i * in_.size, 1.0f / sums[i], in_.size, out.row(i));
  }

  // Scores become 2^(score - the largest), whose sum it gives.
  static float softmax_row(float* scores, int64_t width, float* lse) {
    float largest = -kInfinity, sum = 0.0f;
#pragma omp simd reduction(max : largest)
    for (int64_t j = 0; j < width; ++j) largest = scores[j] > largest ? scores[j] : largest;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < width; ++j) {
      scores[j] = power_of_two(scores[j] - largest);
      sum += scores[j];
    }
    *lse = (largest + std::log2(sum)) * kLn2;
    return sum;
  }

  void drop(float* weights, int64_t width, int64_t row) {
    float* factor = factor_.data();
    dropout_factors(in_.dropout, row, width, factor);
#pragma omp simd
    for (int64_t j = 0; j < width; ++j) weights[j] *= factor[j];
  }

  const AttentionForward& args_;
  const Attention& in_;
  const int64_t words_, longest_;
  int64_t number_ = -1, kv_head_ = -1;  // what is laid out
  Room<Word> rows_, keys_, values_;
  Room<float> scores_;
  Room<Word> weights_;
  Room<float> out_, factor_;
};

// The backward pass of a thread: also with the gradients of a head's keys and values, which all blocks add to.
template <class T>
class Backward {
 public:
  explicit Backward(const AttentionBackward& args)
      : args_(args), in_(args.in), size_(in_.size), words_(steps_of<Word>(in_.size)), longest_(longest_of(in_)),
        rows_(longest_ * words_), keys_(longest_ * words_), values_(longest_ * words_),
        key_steps_(longest_ * round_up(size_, kPanel)), queries_(kQueries * words_), douts_(kQueries * words_),
        query_steps_(kQueries * round_up(size_, kPanel)), dout_steps_(kQueries * round_up(size_, kPanel)),
        weights_(kQueries * kTileKeys), scores_(kQueries * kTileKeys), dscores_(kQueries * kTileKeys),
        dq_(kQueries * size_), dk_(longest_ * size_), dv_(longest_ * size_), factor_(kTileKeys + kDraws) {}

  void sequence(int64_t number, int64_t kv_head, float* dbias) {
    const Sequence sequence(in_, number);
    const int64_t group = in_.heads / in_.kv_heads, length = sequence.length;
    const int64_t key_head = in_.heads + kv_head, value_head = key_head + in_.kv_heads;
    const Rows<const T> k = projected<const T>(in_.qkv, key_head, sequence.start);
    const Rows<const T> v = projected<const T>(in_.qkv, value_head, sequence.start);
    read_rows(v.at, v.stride, length, size_, rows_.data());
    transposed(rows_.data(), length, words_, values_.data());
    read_rows(k.at, k.stride, length, size_, rows_.data());
    transposed(rows_.data(), length, words_, keys_.data());
    as_steps(rows_.data(), length, size_, key_steps_.data());
    std::memset(dk_.data(), 0, length * size_ * sizeof(float));
    std::memset(dv_.data(), 0, length * size_ * sizeof(float));
    for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
      for (int64_t first = 0; first < length; first += kQueries) block(sequence, head, first, dbias);
    }
    const Rows<T> dk = projected<T>(args_.dqkv, key_head, sequence.start);
    const Rows<T> dv = projected<T>(args_.dqkv, value_head, sequence.start);
    for (int64_t j = 0; j < length; ++j) {
      write_row(dk_.data() + j * size_, in_.scale, size_, dk.row(j));
      write_row(dv_.data() + j * size_, 1.0f, size_, dv.row(j));
    }
  }

 private:
  using Word = WordOf<T>;

  template <class U, class Pointer>
  Rows<U> projected(Pointer qkv, int64_t head, int64_t token) const {
    return {qkv, in_, in_.heads + 2 * in_.kv_heads, head, token};
  }

  // The sums of dout out, for rows of a head.
  void sums_of_products(const Rows<const T>& out, const Rows<const T>& dout, int64_t count, float* sums) const {
    for (int64_t i = 0; i < count; ++i) {
      const T* a = out.row(i);
      const T* b = dout.row(i);
      float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
      for (int64_t n = 0; n < size_; ++n) sum += to_float(a[n]) * to_float(b[n]);
      sums[i] = sum;
    }
  }

  // The queries [first, first + kQueries) of a head, with all keys that they see.
  void block(const Sequence& sequence, int64_t head, int64_t first, float* dbias) {
    const int64_t token = sequence.start + first;
    const int64_t count = sequence.length - first < kQueries ? sequence.length - first : kQueries;
    const Rows<const T> q = projected<const T>(in_.qkv, head, token);
    const Rows<const T> dout(args_.dout, in_, in_.heads, head, token), out(args_.out, in_, in_.heads, head, token);
    float delta[kQueries];
    sums_of_products(out, dout, count, delta);
    read_rows(q.at, q.stride, count, size_, queries_.data());
    read_rows(dout.at, dout.stride, count, size_, douts_.data());
    const Right<Word> query_steps = as_steps(queries_.data(), count, size_, query_steps_.data());
    const Right<Word> dout_steps = as_steps(douts_.data(), count, size_, dout_steps_.data());
    const int64_t seen = sequence.seen(first + count - 1);
    for (int64_t key = 0; key < seen; key += kTileKeys) {
      const int64_t keys = seen - key < kTileKeys ? seen - key : kTileKeys, width = round_up(keys, kLanes);
      const int64_t steps = steps_of<Word>(count);
      scores_of(queries_, keys_, count, key, keys, scores_.data());
      scores_of(douts_, values_, count, key, keys, dscores_.data());
      for (int64_t i = 0; i < count; ++i) {
        const int64_t at = i * width;
        gradient_row(sequence, head, first + i, key, width, delta[i], scores_.data() + at, dscores_.data() + at);
        if (dbias != nullptr) add_bias(head, first + i, key, keys, dscores_.data() + at, dbias);
      }
      const Left<Word> weights = left_of_transposed(scores_.data(), count, width, weights_.data());
      multiply(weights, keys, dout_steps, steps, size_, dv_.data() + key * size_, size_, true);
      const Left<Word> columns = left_of_transposed(dscores_.data(), count, width, weights_.data());
      multiply(columns, keys, query_steps, steps, size_, dk_.data() + key * size_, size_, true);
      const Left<Word> rows = left_of(dscores_.data(), count, width, weights_.data());
      const Right<Word> key_steps{key_steps_.data(), steps_of<Word>(sequence.length)};
      const Right<Word> part = key_steps.from_step(key / Numbers<Word>::kOfWord);
      multiply(rows, count, part, steps_of<Word>(keys), size_, dq_.data(), size_, key > 0);
    }
    const Rows<T> dq = projected<T>(args_.dqkv, head, token);
    for (int64_t i = 0; i < count; ++i) write_row(dq_.data() + i * size_, in_.scale, size_, dq.row(i));
  }

  // left right^T for keys [key, key + keys) of the right side: [count, keys filled up to vectors].
  void scores_of(Room<Word>& left, Room<Word>& right, int64_t count, int64_t key, int64_t keys, float* out) {
    const Right<Word> columns = Right<Word>{right.data(), words_}.from_column(key);
    multiply(Left<Word>{left.data(), words_, 1}, count, columns, words_, keys, out, round_up(keys, kLanes), false);
  }

  // A row of scores becomes the weights after dropout, a row of their gradients that of the scores.
  void gradient_row(const Sequence& sequence, int64_t head, int64_t query, int64_t key, int64_t width, float delta,
                    float* scores, float* dscores) {
    const int64_t token = sequence.start + query;
    const float lse = args_.lse[head * in_.tokens + token] * kLog2E;
    score_row(in_, sequence, head, query, key, width, scores);
    if (in_.dropout.threshold == 0) {
#pragma omp simd
      for (int64_t j = 0; j < width; ++j) {
        scores[j] = power_of_two(scores[j] - lse);
        dscores[j] = scores[j] * (dscores[j] - delta);
      }
      return;
    }
    float* factor = factor_.data();
    dropout_factors(in_.dropout, token * in_.heads + head, width, factor, key);
#pragma omp simd
    for (int64_t j = 0; j < width; ++j) {
      const float weight = power_of_two(scores[j] - lse);
      scores[j] = weight * factor[j];
      dscores[j] = weight * (dscores[j] * factor[j] - delta);
    }
  }

  void add_bias(int64_t head, int64_t query, int64_t key, int64_t keys, const float* dscores, float* dbias) const {
    float* sums = dbias + head * (2 * in_.longest - 1) + in_.longest - 1 - query + key;
#pragma omp simd
    for (int64_t j = 0; j < keys; ++j) sums[j] += dscores[j];
  }

  const AttentionBackward& args_;
  const Attention& in_;
  const int64_t size_, words_, longest_;
  Room<Word> rows_, keys_, values_, key_steps_, queries_, douts_, query_steps_, dout_steps_, weights_;
  Room<float> scores_, dscores_, dq_, dk_, dv_, factor_;
};

void attention_forward(const AttentionForward& args, int64_t first, int64_t last) {
  const Attention& in = args.in;
  const bool at_the_end = last >= attention_units(in);
  with_type(in.type, [&](auto zero) {
    using T = decltype(zero);
    Forward<T> forward(args);
    for_pieces(in, kPieceQueries, first, last, [&](int64_t number, int64_t head, int64_t begin, int64_t end) {
      forward.piece(number, head, begin, end);
    });
    if (at_the_end) clear_filler(in, 1, in.heads * in.size, static_cast<T*>(args.out));
  });
  if (at_the_end) clear_filler(in, in.heads, 1, args.lse);
}

void attention_backward(const AttentionBackward& args, int64_t first, int64_t last) {
  const Attention& in = args.in;
  const int64_t group = in.heads / in.kv_heads, columns = 2 * in.longest - 1;
  const bool biased = args.dbias != nullptr;
  with_type(in.type, [&](auto zero) {
    using T = decltype(zero);
    Backward<T> backward(args);
    for_units(in, biased ? args.blocks : 0, first, last, [&](int64_t block, int64_t begin, int64_t end, int64_t head) {
      float* sums = biased ? args.partial + block * in.heads * columns : nullptr;
      if (biased) std::memset(sums + head * group * columns, 0, group * columns * sizeof(float));
      for (int64_t s = begin; s < end; ++s) backward.sequence(s, head, sums);
    });
    const int64_t width = (in.heads + 2 * in.kv_heads) * in.size;
    if (last >= attention_units(in)) clear_filler(in, 1, width, static_cast<T*>(args.dqkv));
  });
}

void attention_reduce(const AttentionBackward& args, int64_t first, int64_t last) {
  const int64_t numbers = args.in.heads * (2 * args.in.longest - 1);
  for (int64_t i = first; i < last; ++i) args.dbias[i] = 0.0f;
  for (int64_t block = 0; block < args.blocks; ++block) {
    const float* sums = args.partial + block * numbers;
#pragma omp simd
    for (int64_t i = first; i < last; ++i) args.dbias[i] += sums[i];
  }
}

}  // namespace

extern const AttentionKernels KERNELS_OF_LEVEL(attention_kernels);
const AttentionKernels KERNELS_OF_LEVEL(attention_kernels) = {attention_forward, attention_backward, attention_reduce};

}  // namespace kernels
