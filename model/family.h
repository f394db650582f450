// The table of model families: what a config.json's model_type (or a GGUF's general.architecture) says about a model
// beyond its sizes, and which families the engine cannot run and why.
#pragma once

#include <string>

namespace longhaul {

struct FamilyFacts {
  const char* name;               // model_type of config.json, and ModelShape::family
  const char* hf_class;           // of config.json's architectures; "" where Longhaul writes none
  const char* gguf_architecture;  // general.architecture of a GGUF; "" where Longhaul reads none
  bool qk_norm;                   // per-head RMSNorm of q and k
  bool gguf_permutes_qk;          // rows of q and k are permuted in a GGUF (FORMATS.md section 8)
  double default_rope_theta;
  const char* missing;  // "" = supported; else the feature that the engine lacks
};

// Null where the name is unknown. Static storage.
const FamilyFacts* FindFamily(const std::string& name);
const FamilyFacts* FindFamilyByGgufArchitecture(const std::string& architecture);
// "llama, mistral, qwen3": for messages.
std::string SupportedFamilies();

}  // namespace longhaul
