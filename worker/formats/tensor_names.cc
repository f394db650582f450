#include "worker/formats/tensor_names.h"

#include "base/check.h"

namespace longhaul::formats {
namespace {

enum class Dim { kOne, kVocab, kHidden, kIntermediate, kQ, kKv, kHeadDim };
enum class When { kAlways, kUntied, kQkNorm };
enum class Rotary { kNo, kQuery, kKey };

struct NameFact {
  const char* hf;    // below "model.layers.N." where per_layer
  const char* gguf;  // below "blk.N." where per_layer
  bool per_layer;
  Dim rows;
  Dim cols;
  Rotary rotary = Rotary::kNo;
  When when = When::kAlways;
};

constexpr NameFact kNames[] = {
    {kEmbeddingName, "token_embd.weight", false, Dim::kVocab, Dim::kHidden},
    {"input_layernorm.weight", "attn_norm.weight", true, Dim::kOne, Dim::kHidden},
    {"self_attn.q_proj.weight", "attn_q.weight", true, Dim::kQ, Dim::kHidden, Rotary::kQuery},
    {"self_attn.k_proj.weight", "attn_k.weight", true, Dim::kKv, Dim::kHidden, Rotary::kKey},
    {"self_attn.v_proj.weight", "attn_v.weight", true, Dim::kKv, Dim::kHidden},
    {"self_attn.o_proj.weight", "attn_output.weight", true, Dim::kHidden, Dim::kQ},
    {"self_attn.q_norm.weight", "attn_q_norm.weight", true, Dim::kOne, Dim::kHeadDim, Rotary::kNo, When::kQkNorm},
    {"self_attn.k_norm.weight", "attn_k_norm.weight", true, Dim::kOne, Dim::kHeadDim, Rotary::kNo, When::kQkNorm},
    {"post_attention_layernorm.weight", "ffn_norm.weight", true, Dim::kOne, Dim::kHidden},
    {"mlp.gate_proj.weight", "ffn_gate.weight", true, Dim::kIntermediate, Dim::kHidden},
    {"mlp.up_proj.weight", "ffn_up.weight", true, Dim::kIntermediate, Dim::kHidden},
    {"mlp.down_proj.weight", "ffn_down.weight", true, Dim::kHidden, Dim::kIntermediate},
    {"model.norm.weight", "output_norm.weight", false, Dim::kOne, Dim::kHidden},
    {kHeadName, "output.weight", false, Dim::kVocab, Dim::kHidden, Rotary::kNo, When::kUntied},
};

int64_t SizeOf(Dim dim, const ModelShape& shape) {
  switch (dim) {
    case Dim::kOne:
      return 1;
    case Dim::kVocab:
      return shape.vocab;
    case Dim::kHidden:
      return shape.hidden;
    case Dim::kIntermediate:
      return shape.intermediate;
    case Dim::kQ:
      return shape.q_dim();
    case Dim::kKv:
      return shape.kv_dim();
    case Dim::kHeadDim:
      return shape.head_dim;
  }
  LH_CHECK(false);
}

ExpectedTensor Expect(const NameFact& fact, const ModelShape& shape, const std::string& hf_prefix,
                      const std::string& gguf_prefix) {
  ExpectedTensor tensor;
  tensor.hf_name = hf_prefix + fact.hf;
  tensor.gguf_name = gguf_prefix + fact.gguf;
  tensor.rows = SizeOf(fact.rows, shape);
  tensor.cols = SizeOf(fact.cols, shape);
  tensor.is_vector = fact.rows == Dim::kOne;
  if (fact.rotary == Rotary::kQuery) tensor.rotary_heads = shape.heads;
  if (fact.rotary == Rotary::kKey) tensor.rotary_heads = shape.kv_heads;
  return tensor;
}

}  // namespace

std::vector<ExpectedTensor> ExpectedTensors(const ModelShape& shape) {
  std::vector<ExpectedTensor> out;
  for (const NameFact& fact : kNames) {
    if (fact.when == When::kUntied && shape.tied_embeddings) continue;
    if (fact.when == When::kQkNorm && !shape.qk_norm) continue;
    if (!fact.per_layer) {
      out.push_back(Expect(fact, shape, "", ""));
      continue;
    }
    for (int64_t layer = 0; layer < shape.layers; ++layer) {
      const std::string n = std::to_string(layer);
      out.push_back(Expect(fact, shape, "model.layers." + n + ".", "blk." + n + "."));
    }
  }
  return out;
}

}  // namespace longhaul::formats
