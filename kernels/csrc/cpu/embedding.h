// The CPU kernels of the embeddings.
#pragma once

#include "../common/embedding.h"
#include "levels.h"

namespace kernels {

struct EmbeddingKernels {
  // Rows [first, last).
  void (*forward)(const EmbeddingForward& args, int64_t first, int64_t last);
  // Blocks [first, last) of rows: block b of n holds rows [b N / n, (b + 1) N / n), whatever the threads.
  void (*backward)(const EmbeddingBackward& args, int64_t first, int64_t last);
  // Columns [first, last) of the blocks' sums.
  void (*reduce)(const EmbeddingBackward& args, int64_t first, int64_t last);
  // Pieces [first, last) of all tables: piece p of table t is number t * pieces + p.
  void (*sum_pieces)(const EmbeddingRuns& args, int64_t first, int64_t last);
  // The runs that go on after the pieces [first, last) that they begin in.
  void (*join_pieces)(const EmbeddingRuns& args, int64_t first, int64_t last);
};

KERNELS_LEVELS(EmbeddingKernels, embedding_kernels)

}  // namespace kernels
