// Kernels of the cut cross entropy besides those of ops.h (LossTile and its parts). Queued on the stream handed in,
// which may be one that is only captured. They throw CudaError where a launch fails.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/shapes/gemm_shape.h"

namespace longhaul::kernels::cuda {

// A tile of logits [rows, cols] with what LossTile or FinishLoss left of its rows. Rows begin at multiples of 16 bytes.
struct CceTile {
  void* logits = nullptr;
  GemmElement type = GemmElement::kBF16;
  int64_t stride = 0;  // elements of `type`
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t first_col = 0;            // of the vocabulary
  const int32_t* labels = nullptr;  // [rows]
  const float* lse = nullptr;       // [rows]
  const double* grad_scale = nullptr;
};

// The tile's logits replaced by grad_scale * (e^(logit - lse) - onehot) in bf16, zero rows where not trained. The
// gradient of a row begins where its logits began; its stride is the same number of bytes.
void LaunchGradientToBf16(cudaStream_t stream, const CceTile& tile);

// ---- Negligible columns: the tile spans the vocabulary ----

// A column stays where a trained row gives it at least this, or it is a label. The smallest probability whose gradient
// shows next to the row's largest in bf16 sums (4 bits below its 8).
inline constexpr double kKeptProbability = 0x1p-12;
// A row that loses more than this takes the full product: the mean head row stands for little.
inline constexpr float kMaxDroppedMass = 0.05f;

// In device memory.
struct KeptState {
  int32_t kept = 0;  // columns
  int32_t next = 0;  // of them, the first that the second product has not seen
  int32_t full = 0;  // 1: the tile takes the full product
};

struct KeptColumns {
  uint8_t* flags = nullptr;  // [cols], 1: stays
  int32_t* kept = nullptr;   // [cols], those that stay, ascending
  float* mass = nullptr;     // [rows], probability of those that stay
  KeptState* state = nullptr;
};

// Fills `columns`.
void LaunchChooseColumns(cudaStream_t stream, const CceTile& tile, const KeptColumns& columns);
// full = state.full; more = there are columns to take in chunks.
void LaunchDecide(cudaStream_t stream, const KeptState* state, cudaGraphConditionalHandle full,
                  cudaGraphConditionalHandle more);
// The next `chunk` columns that stay: their head rows to head_chunk [chunk, hidden] bf16, their gradients to d_chunk
// [rows, chunk] bf16; zeros behind the last one.
void LaunchGatherChunk(cudaStream_t stream, const CceTile& tile, const KeptColumns& columns, int64_t chunk,
                       const void* head, int64_t head_stride, int64_t hidden, void* head_chunk, void* d_chunk);
// next += chunk; more = there are columns left.
void LaunchAdvance(cudaStream_t stream, KeptState* state, int64_t chunk, cudaGraphConditionalHandle more);

// d [rows, hidden] bf16 = d_sum, and where columns were dropped + grad_scale * (1 - mass) * mean_row. `columns` and
// mean_row null: d_sum alone.
void LaunchFinishHidden(cudaStream_t stream, const CceTile& tile, const KeptColumns* columns, const float* mean_row,
                        const float* d_sum, int64_t hidden, void* d, int64_t d_stride);

// mean [hidden] f32 of head's rows [vocab, hidden] bf16.
void LaunchMeanRow(cudaStream_t stream, const void* head, int64_t head_stride, int64_t vocab, int64_t hidden,
                   float* mean);

}  // namespace longhaul::kernels::cuda
