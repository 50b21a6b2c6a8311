// The arguments of the embeddings. N tokens, D columns; the tables are word, position and segment, in this order.
#pragma once

#include "api.h"

namespace kernels {

constexpr int kTables = 3;

// Where the sums z = word[token] + position[place] + segment[kind] come from.
struct EmbeddingTables {
  const int64_t* ids[kTables];  // [N]; null is 0 everywhere
  const void* table[kTables];   // [rows, D] of one type; null is none
  int64_t rows[kTables];
};

// y = dropout((z - mean) * rstd * weight + shift), or dropout(z) without a weight. A GPU does not wait for a check of
// the ids: what has one beyond its table is NaN there, and who calls the CPU's functions has checked them.
struct EmbeddingForward {
  EmbeddingTables from;
  const void* weight;  // [D] parameter type, or null
  const void* shift;   // [D] parameter type, or null
  void* y;             // [N, D]
  float* mean;         // [N], or null without a weight
  float* rstd;         // [N], or null without a weight
  int64_t count, width;
  Type type, parameter;  // of tables and y; of weight and shift
  float eps;
  Dropout dropout;
};

// The gradients of EmbeddingForward with a weight: of z, which is summed up again, and of weight and shift, whose sums
// over blocks of rows are in `partial` until they are added up in order.
struct EmbeddingBackward {
  EmbeddingTables from;
  const void* dy;      // [N, D]
  const void* weight;  // [D] parameter type
  const float* mean;   // [N]
  const float* rstd;   // [N]
  void* dz;            // [N, D]
  float* dweight;      // [D]
  float* dshift;       // [D]
  float* partial;      // [blocks, 2, D]
  int64_t count, width, blocks;
  Type type, parameter;
  Dropout dropout;
};

// The gradients of the tables: the rows of dz that have the same id, added up in their order. What is beyond a table is
// left out.
//
// The sorted ids are cut into pieces of a fixed length. A run of equal ids within a piece is written at once; of one
// that goes on, each piece keeps its share in `partial`, and the shares are added up in order afterwards.
struct EmbeddingRuns {
  const void* dz;        // [N, D]
  const int64_t* ids;    // [3, N], each row sorted
  const int64_t* order;  // [3, N]: the row of dz that each of them belongs to
  void* out[kTables];    // [rows, D], zero at first; null is not wanted
  int64_t rows[kTables];
  float* partial;  // [3, pieces, 2, D]: of the run that began before the piece, and of the one that goes on after it
  int64_t count, width, pieces, length;  // of dz, and of a piece
  Type type;
};

}  // namespace kernels
