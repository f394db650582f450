// The frozen base in the arena: views, and loading them.
#pragma once

#include <vector>

#include "absl/status/status.h"
#include "kernels/exec.h"
#include "kernels/ops.h"
#include "kernels/tensor.h"
#include "worker/train/base_cache.h"
#include "worker/train/memory.h"
#include "worker/train/weight_source.h"

namespace longhaul::train {

struct LayerWeights {
  // CPU; on CUDA the linears are cuda_weights.h's.
  kernels::FrozenWeight qkv;      // [q + 2 kv, hidden]: rows of q, then k, then v
  kernels::FrozenWeight o;        // [hidden, q]
  kernels::FrozenWeight gate_up;  // [2 intermediate, hidden]: rows of gate, then up
  kernels::FrozenWeight down;     // [hidden, intermediate]
  kernels::Tensor norm1;          // [1, hidden]
  kernels::Tensor norm2;          // [1, hidden]
  kernels::Tensor q_norm;         // [1, head_dim]; qk_norm models only
  kernels::Tensor k_norm;         // [1, head_dim]
};

// Views into an EngineMemory, which outlives them.
struct ModelWeights {
  std::vector<LayerWeights> layers;
  kernels::Tensor final_norm;  // [1, hidden]
  kernels::FrozenWeight head;  // [vocab, hidden]; on CUDA plain bf16
  kernels::Tensor embedding;   // [vocab, hidden], f32, f64 or bf16; the head's own memory where the plan shares it
  kernels::Tensor rope_cos;    // [longest document, head_dim / 2]
  kernels::Tensor rope_sin;
};

ModelWeights CarveWeights(const EngineMemory& memory);

// Reads every tensor, quantises and dequantises the linears where the plan's base is NF4 (bit for bit as bitsandbytes
// with double quantisation; a weight stored as NF4 is left as it is), and lays it out as the plan says. Fills the RoPE
// tables. Uses exec's threads; scratch is bounded by one tensor's 4-bit form and freed. `cache`, where it is not null,
// is asked first, and told to keep what had to be read.
// INVALID_ARGUMENT: the source's shape is not the plan's, or a weight is not finite (on a CPU asked of NF4
// alone), which is named.
absl::Status LoadWeights(const WeightSource& source, const EngineMemory& memory, const kernels::Exec& exec,
                         const ModelWeights& weights, BaseCache* cache = nullptr);

}  // namespace longhaul::train
