// Kernels of the cut cross entropy besides those of ops.h. Queued on the stream handed in, which may be one that is
// only captured. They throw CudaError where a launch fails.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/cuda/cuda_exec.h"
#include "kernels/tensor.h"

namespace longhaul::kernels::cuda {

// Rows of a tile and what UpdateLoss left of them.
struct CceRows {
  int64_t rows = 0;
  int64_t vocab = 0;
  const int32_t* labels = nullptr;  // [rows]
  float* largest = nullptr;         // [rows]
  float* sum = nullptr;             // [rows]
  float* label_logit = nullptr;     // [rows]
  const double* grad_scale = nullptr;
};

// Rows of the head, bf16, at multiples of 16 bytes.
struct CceHead {
  const void* rows = nullptr;  // [vocab, hidden]
  int64_t stride = 0;
  int64_t hidden = 0;  // a multiple of 8
};

// d [rows, hidden] = grad_scale * (d_sum / sum + (p - 1) * head[label]), p the label's probability; zeros where not
// trained. d_sum [rows, hidden]: what UpdateLoss' weights times the head come to. places [rows]: the row of d that each
// goes to, -1 to none; null: its own.
void LaunchFinishHidden(cudaStream_t stream, const CceRows& rows, const CceHead& head, const float* d_sum,
                        const int32_t* places, float* d, int64_t d_stride);

// ---- Negligible columns ----

// A row keeps a column that it gives at least this.
inline constexpr double kKeptProbability = 0x1p-13;
// A row that loses more than this takes all columns: the mean head row stands for little.
inline constexpr float kMaxDroppedMass = 0.05f;

// Columns that each row keeps, in device memory.
struct KeptColumns {
  void* entries = nullptr;     // [rows, kCceKeptPerRow] int2: column, bits of its f32 logit; never the label
  int32_t* counts = nullptr;   // [rows]
  float* lost = nullptr;       // [rows] no logit larger than this was lost for want of room
  uint8_t* is_full = nullptr;  // [rows] 1: the row takes all columns
};

// Empty lists.
void LaunchBeginColumns(cudaStream_t stream, int64_t rows, const KeptColumns& columns);
// UpdateLoss of the tile `logits` of columns from first_col, and columns that the rows keep by what they know then,
// those before looked at again, in an order that is the same always.
void LaunchKeepColumns(const CudaDeviceFacts& facts, cudaStream_t stream, const Tensor& logits, int64_t first_col,
                       const CceRows& rows, const KeptColumns& columns);
// After the last tile: d [rows, hidden] = grad_scale * (sum of p * head over the columns kept and the label
// - head[label] + the rest of the probability * mean_row), zeros where not trained; is_full of every row, and nothing
// else where that is 1.
void LaunchKeptHidden(cudaStream_t stream, const CceRows& rows, const CceHead& head, const KeptColumns& columns,
                      const float* mean_row, float* d, int64_t d_stride);

// In device memory.
struct FullState {
  int32_t count = 0;  // rows that take all columns
  int32_t next = 0;   // of them, the first that has not been taken
};
// full [rows]: the rows with is_full, ascending; the state of none taken; more = there are some.
void LaunchListFull(cudaStream_t stream, int64_t rows, const uint8_t* is_full, int32_t* full, FullState* state,
                    cudaGraphConditionalHandle more);
// The next `count` of them: their rows of hidden [rows, hidden] to to_hidden, their labels and numbers; zeros,
// kNotTrained and -1 behind the last.
void LaunchGatherFull(cudaStream_t stream, const int32_t* full, const FullState* state, int64_t count,
                      const void* hidden, int64_t hidden_stride, int64_t hidden_cols, const int32_t* labels,
                      void* to_hidden, int32_t* to_labels, int32_t* places);
// next += count; more = there are some left.
void LaunchAdvance(cudaStream_t stream, FullState* state, int64_t count, cudaGraphConditionalHandle more);

// mean [hidden] f32 of head's rows [vocab, hidden] bf16.
void LaunchMeanRow(cudaStream_t stream, const CceHead& head, int64_t vocab, float* mean);

}  // namespace longhaul::kernels::cuda
