#include "model/family.h"

namespace longhaul {
namespace {

constexpr FamilyFacts kFamilies[] = {
    {"llama", "LlamaForCausalLM", "llama", false, true, 10000.0, ""},
    {"mistral", "MistralForCausalLM", "", false, true, 10000.0, ""},
    {"qwen3", "Qwen3ForCausalLM", "qwen3", true, false, 1000000.0, ""},
    {"qwen2", "", "qwen2", false, false, 10000.0, "biases of q, k and v"},
    {"gemma", "", "gemma", false, false, 10000.0, "the (1 + w) norm and scaled embeddings"},
    {"gemma2", "", "gemma2", false, false, 10000.0, "soft-capped attention and the (1 + w) norm"},
    {"gemma3_text", "", "gemma3", true, false, 10000.0, "sliding-window layers and the (1 + w) norm"},
    {"phi3", "", "phi3", false, false, 10000.0, "fused qkv projections and partial rotary embedding"},
    {"smollm3", "", "smollm3", false, false, 10000.0, "layers without rotary embedding"},
    {"mixtral", "", "", false, true, 10000.0, "mixture-of-experts layers"},
    {"qwen3_moe", "", "qwen3moe", true, false, 10000.0, "mixture-of-experts layers"},
    {"gpt2", "", "gpt2", false, false, 10000.0, "learned positions and layer norm"},
};

}  // namespace

const FamilyFacts* FindFamily(const std::string& name) {
  for (const FamilyFacts& family : kFamilies) {
    if (name == family.name) return &family;
  }
  return nullptr;
}

const FamilyFacts* FindFamilyByGgufArchitecture(const std::string& architecture) {
  if (architecture.empty()) return nullptr;
  for (const FamilyFacts& family : kFamilies) {
    if (architecture == family.gguf_architecture) return &family;
  }
  return nullptr;
}

std::string SupportedFamilies() {
  std::string names;
  for (const FamilyFacts& family : kFamilies) {
    if (family.missing[0] != '\0') continue;
    if (!names.empty()) names += ", ";
    names += family.name;
  }
  return names;
}

}  // namespace longhaul
