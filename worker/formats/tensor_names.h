// The tensors of a Llama-like model: one table with the Hugging Face name, the GGUF name and the dims of each.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/model_shape.h"

namespace longhaul::formats {

struct ExpectedTensor {
  std::string hf_name;    // "model.layers.0.self_attn.q_proj.weight"
  std::string gguf_name;  // "blk.0.attn_q.weight"
  int64_t rows = 0;       // 1 for a norm
  int64_t cols = 0;
  bool is_vector = false;    // a norm: one dimension
  int64_t rotary_heads = 0;  // q and k: heads whose rows GGUF permutes for family llama; 0 elsewhere
};

// Every tensor that a model of this shape must have; lm_head only where the embeddings are not tied.
std::vector<ExpectedTensor> ExpectedTensors(const ModelShape& shape);

inline constexpr char kEmbeddingName[] = "model.embed_tokens.weight";
inline constexpr char kHeadName[] = "lm_head.weight";

}  // namespace longhaul::formats
