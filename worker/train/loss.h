// Cut cross entropy, two passes over a tile of tokens at a time: logits of the tile against the whole vocabulary, loss
// and softmax gradient in place, gradient times the frozen head. Nothing of size tokens x vocabulary exists; rows that
// are not trained cost nothing.
#pragma once

#include <cstdint>

#include "kernels/exec.h"
#include "worker/train/decoder.h"
#include "worker/train/memory.h"
#include "worker/train/weights.h"

namespace longhaul::train {

struct LossSum {
  double nats = 0;  // sum over trained targets of -log p(target)
  int64_t targets = 0;
  int64_t correct = 0;  // targets that are the argmax
};

class CutCrossEntropy {
 public:
  // All arguments outlive the loss.
  CutCrossEntropy(const EngineMemory& memory, const kernels::Exec& exec, const ModelWeights& weights);

  // x [rows, hidden]: the last layer's output, before the final norm. Where d_x.data is not null:
  // d_x = grad_scale * d(sum of nats) / dx, zero in rows that are not trained. d_x may not alias x.
  // A label outside the vocabulary (other than -100) is a CHECK. grad_scale > 0 where d_x is asked for.
  LossSum Run(const TokenBatch& batch, const kernels::Tensor& x, double grad_scale, const kernels::Tensor& d_x) const;

  // Logits [rows, vocab] of rows of x, into the loss tile. REQUIRES: rows <= the plan's loss tile.
  kernels::Tensor Logits(const kernels::Tensor& x) const;

 private:
  LossSum RunTile(const kernels::Tensor& x, const int32_t* rows, const int32_t* labels, int64_t count,
                  double grad_scale, const kernels::Tensor& d_x) const;
  const EngineMemory& memory_;
  const kernels::Exec& exec_;
  const ModelWeights& weights_;
  // Regions of the plan at their full size.
  int32_t* rows_;           // [tokens]
  int32_t* labels_;         // [tokens]
  kernels::Tensor x_;       // [tile rows, hidden]
  kernels::Tensor hidden_;  // [tile rows, hidden]
  kernels::Tensor rstd_;    // [tile rows, 1]
  kernels::Tensor logits_;  // [tile rows, vocab]
  void* scratch_;
};

}  // namespace longhaul::train
