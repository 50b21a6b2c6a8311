// Embedding sum, LayerNorm and dropout in one pass over a row, their gradients in another, and those of the tables.
//
// Compiled once for each level of instructions (build.py): KERNELS_LEVEL names it.
#include "embedding.h"

#include <cmath>

#include "numbers.h"

namespace kernels {
namespace {

// Parameters as floats, and room for a row.
struct Row {
  Floats weight, shift, factor, value, gradient;

  Row(int64_t width, Type type, const void* weights, const void* shifts)
      : weight(width), shift(width), factor(width + kDraws, 1.0f), value(width), gradient(width) {
    if (weights != nullptr) read_parameter(weights, type, width, weight.data());
    if (shifts != nullptr) read_parameter(shifts, type, width, shift.data());
  }
};

template <class T>
const T* table_row(const EmbeddingTables& from, int table, int64_t number, int64_t width) {
  if (from.table[table] == nullptr) return nullptr;
  const int64_t id = from.ids[table] != nullptr ? from.ids[table][number] : 0;
  return static_cast<const T*>(from.table[table]) + id * width;
}

// Row `number` of z, [width]; gives its sum.
template <class T>
float sum_of_tables(const EmbeddingTables& from, int64_t number, int64_t width, float* out) {
  const T* word = table_row<T>(from, 0, number, width);
  const T* position = table_row<T>(from, 1, number, width);
  const T* segment = table_row<T>(from, 2, number, width);
  float sum = 0.0f;
  if (segment != nullptr) {
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < width; ++i) {
      out[i] = to_float(word[i]) + to_float(position[i]) + to_float(segment[i]);
      sum += out[i];
    }
  } else {
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < width; ++i) {
      out[i] = to_float(word[i]) + to_float(position[i]);
      sum += out[i];
    }
  }
  return sum;
}

template <class T>
void forward_row(const EmbeddingForward& args, int64_t number, Row& row) {
  const int64_t width = args.width;
  T* y = static_cast<T*>(args.y) + number * width;
  const float* value = row.value.data();
  const float* factor = row.factor.data();
  if (args.dropout.threshold != 0) dropout_factors(args.dropout, number, width, row.factor.data());
  const float sum = sum_of_tables<T>(args.from, number, width, row.value.data());
  if (args.weight == nullptr) {
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) y[i] = from_float<T>(value[i] * factor[i]);
    return;
  }
  const float mean = sum / static_cast<float>(width);
  float squares = 0.0f;
#pragma omp simd reduction(+ : squares)
  for (int64_t i = 0; i < width; ++i) squares += (value[i] - mean) * (value[i] - mean);
  const float rstd = 1.0f / std::sqrt(squares / static_cast<float>(width) + args.eps);
  args.mean[number] = mean;
  args.rstd[number] = rstd;
  const float* weight = row.weight.data();
  const float* shift = row.shift.data();
#pragma omp simd
  for (int64_t i = 0; i < width; ++i) {
    y[i] = from_float<T>(((value[i] - mean) * rstd * weight[i] + shift[i]) * factor[i]);
  }
}

template <class T>
void backward_row(const EmbeddingBackward& args, int64_t number, Row& row, float* dweight, float* dshift) {
  const int64_t width = args.width;
  const T* dy = static_cast<const T*>(args.dy) + number * width;
  T* dz = static_cast<T*>(args.dz) + number * width;
  float* normalized = row.value.data();
  float* gradient = row.gradient.data();
  const float* weight = row.weight.data();
  const float* factor = row.factor.data();
  const float mean = args.mean[number], rstd = args.rstd[number];
  if (args.dropout.threshold != 0) dropout_factors(args.dropout, number, width, row.factor.data());
  sum_of_tables<T>(args.from, number, width, normalized);
  float sum = 0.0f, product = 0.0f;
#pragma omp simd reduction(+ : sum, product)
  for (int64_t i = 0; i < width; ++i) {
    const float d = to_float(dy[i]) * factor[i];
    normalized[i] = (normalized[i] - mean) * rstd;
    dweight[i] += d * normalized[i];
    dshift[i] += d;
    gradient[i] = d * weight[i];
    sum += gradient[i];
    product += gradient[i] * normalized[i];
  }
  sum /= static_cast<float>(width);
  product /= static_cast<float>(width);
#pragma omp simd
  for (int64_t i = 0; i < width; ++i) dz[i] = from_float<T>((gradient[i] - sum - normalized[i] * product) * rstd);
}

void forward(const EmbeddingForward& args, int64_t first, int64_t last) {
  Row row(args.width, args.parameter, args.weight, args.shift);
  with_type(args.type, [&](auto zero) {
    for (int64_t n = first; n < last; ++n) forward_row<decltype(zero)>(args, n, row);
  });
}

void backward(const EmbeddingBackward& args, int64_t first, int64_t last) {
  Row row(args.width, args.parameter, args.weight, nullptr);
  for (int64_t block = first; block < last; ++block) {
    float* sums = args.partial + block * 2 * args.width;
    std::memset(sums, 0, 2 * args.width * sizeof(float));
    const int64_t begin = args.count * block / args.blocks, end = args.count * (block + 1) / args.blocks;
    with_type(args.type, [&](auto zero) {
      for (int64_t n = begin; n < end; ++n) backward_row<decltype(zero)>(args, n, row, sums, sums + args.width);
    });
  }
}

void reduce(const EmbeddingBackward& args, int64_t first, int64_t last) {
  float* const outputs[2] = {args.dweight, args.dshift};
  for (int which = 0; which < 2; ++which) {
    float* out = outputs[which];
    for (int64_t i = first; i < last; ++i) out[i] = 0.0f;
    for (int64_t block = 0; block < args.blocks; ++block) {
      const float* sums = args.partial + (block * 2 + which) * args.width;
#pragma omp simd
      for (int64_t i = first; i < last; ++i) out[i] += sums[i];
    }
  }
}

// What belongs to one table.
struct Runs {
  const int64_t* ids;
  const int64_t* order;
  float* partial;
  int64_t count, width, rows;

  Runs(const EmbeddingRuns& args, int table)
      : ids(args.ids + table * args.count),
        order(args.order + table * args.count),
        partial(args.partial + table * args.pieces * 2 * args.width),
        count(args.count),
        width(args.width),
        rows(args.rows[table]) {}

  bool goes_on(int64_t at) const { return at > 0 && at < count && ids[at - 1] == ids[at]; }
  float* share(int64_t piece, bool goes_on) const { return partial + (piece * 2 + (goes_on ? 1 : 0)) * width; }
};

// The sum of the rows of dz from first to last in the order of their ids.
template <class T>
void sum_rows(const EmbeddingRuns& args, const Runs& runs, int64_t first, int64_t last, float* out) {
  const int64_t width = runs.width;
  const T* dz = static_cast<const T*>(args.dz);
  const T* one = dz + runs.order[first] * width;
#pragma omp simd
  for (int64_t i = 0; i < width; ++i) out[i] = to_float(one[i]);
  int64_t at = first + 1;
  for (; at + 4 <= last; at += 4) {  // four at a time, so that the sums are read and written less often
    const T* a = dz + runs.order[at] * width;
    const T* b = dz + runs.order[at + 1] * width;
    const T* c = dz + runs.order[at + 2] * width;
    const T* d = dz + runs.order[at + 3] * width;
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) {
      out[i] = out[i] + to_float(a[i]) + to_float(b[i]) + to_float(c[i]) + to_float(d[i]);
    }
  }
  for (; at < last; ++at) {
    const T* next = dz + runs.order[at] * width;
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) out[i] += to_float(next[i]);
  }
}

template <class T>
void write_row(void* table, int64_t id, int64_t width, const float* sum) {
  T* out = static_cast<T*>(table) + id * width;
#pragma omp simd
  for (int64_t i = 0; i < width; ++i) out[i] = from_float<T>(sum[i]);
}

template <class T>
void sum_piece(const EmbeddingRuns& args, const Runs& runs, int table, int64_t piece, float* sum) {
  const int64_t begin = piece * args.length, end = begin + args.length < args.count ? begin + args.length : args.count;
  for (int64_t first = begin, last; first < end; first = last) {
    const int64_t id = runs.ids[first];
    for (last = first + 1; last < end && runs.ids[last] == id;) ++last;
    const bool began_before = runs.goes_on(first), goes_on = runs.goes_on(last);
    if (id < 0 || id >= runs.rows) continue;
    if (began_before || goes_on) {
      sum_rows<T>(args, runs, first, last, runs.share(piece, !began_before));
    } else if (last == first + 1) {
      const T* dz = static_cast<const T*>(args.dz) + runs.order[first] * runs.width;
      std::memcpy(static_cast<T*>(args.out[table]) + id * runs.width, dz, runs.width * sizeof(T));
    } else {
      sum_rows<T>(args, runs, first, last, sum);
      write_row<T>(args.out[table], id, runs.width, sum);
    }
  }
}

void sum_pieces(const EmbeddingRuns& args, int64_t first, int64_t last) {
  Floats sum(args.width);
  with_type(args.type, [&](auto zero) {
    for (int64_t number = first; number < last; ++number) {
      const int table = static_cast<int>(number / args.pieces);
      if (args.out[table] == nullptr) continue;
      sum_piece<decltype(zero)>(args, Runs(args, table), table, number % args.pieces, sum.data());
    }
  });
}

void join_piece(const EmbeddingRuns& args, const Runs& runs, int table, int64_t piece) {
  const int64_t begin = piece * args.length, end = begin + args.length;
  if (!runs.goes_on(end)) return;
  const int64_t id = runs.ids[end];
  const bool began_before = runs.goes_on(begin) && runs.ids[begin] == id;
  if (began_before || id < 0 || id >= runs.rows) return;
  float* sum = runs.share(piece, true);
  for (int64_t next = piece + 1; next < args.pieces; ++next) {
    const float* share = runs.share(next, false);
#pragma omp simd
    for (int64_t i = 0; i < args.width; ++i) sum[i] += share[i];
    const int64_t after = (next + 1) * args.length;
    if (after >= args.count || runs.ids[after] != id) break;
  }
  with_type(args.type, [&](auto zero) { write_row<decltype(zero)>(args.out[table], id, args.width, sum); });
}

void join_pieces(const EmbeddingRuns& args, int64_t first, int64_t last) {
  for (int64_t number = first; number < last; ++number) {
    const int table = static_cast<int>(number / args.pieces);
    if (args.out[table] != nullptr) join_piece(args, Runs(args, table), table, number % args.pieces);
  }
}

}  // namespace

extern const EmbeddingKernels KERNELS_OF_LEVEL(embedding_kernels);
const EmbeddingKernels KERNELS_OF_LEVEL(embedding_kernels) = {forward, backward, reduce, sum_pieces, join_pieces};

}  // namespace kernels
