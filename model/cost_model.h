// Predicted time of one update, from floating-point operations, what weights and moments move in memory, and the
// device's measured rates.
#pragma once

#include "model/memory_plan.h"

namespace longhaul {

// Floating-point operations of one micro-batch of `plan` with every token in place and `trained_fraction` of the
// targets trained.
struct StepFlops {
  double linear = 0;               // frozen linears, forward and backward
  double lora = 0;                 // forward, dx, dA, dB
  double attention = 0;            // causal, with the backward's own recompute of the scores
  double head = 0;                 // loss: logits and d(hidden)
  double recompute = 0;            // forward work done again for layers that do not keep everything
  double attention_recompute = 0;  // of that, attention
  double total() const { return linear + lora + attention + head + recompute; }
};
StepFlops CountFlops(const MemoryPlan& plan, double trained_fraction = 1.0);

// How many times as long our own attention kernels take as cuDNN's for the plan's longest document.
double ReferenceAttentionSlowdown(const MemoryPlan& plan);

// Work done again as operations of a linear; attention by our own kernels counts for the time that it takes.
double PricedRecompute(const MemoryPlan& plan);

// Bytes of one micro-batch that a GPU reads and writes to dequantise the layers that it does not keep in bf16: for each
// token tile of each pass, and once more, but for down, where a layer's forward is done again. 0 on a CPU, whose
// products dequantise as they go.
double DequantiseBytes(const MemoryPlan& plan);

// Seconds of one update (all micro-batches of a window and the optimizer); 0 where facts.gemm_flops is 0.
double PredictStepSeconds(const MemoryPlan& plan, const DeviceFacts& facts);

}  // namespace longhaul
