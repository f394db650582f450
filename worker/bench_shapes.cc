#include "worker/bench_shapes.h"

#include <utility>

#include "base/env.h"
#include "base/error.h"
#include "base/limits.h"
#include "base/status_macros.h"

namespace longhaul {
namespace {

struct Entry {
  const char* name;
  const char* family;
  int64_t layers, hidden, intermediate, heads, kv_heads, head_dim, vocab, max_position_embeddings;
  double rope_theta;
  double llama3_factor;  // 0 = no scaling
  bool tied;
};

// Source: the config.json of each model.
constexpr Entry kEntries[] = {
    {"smollm2-135m", "llama", 30, 576, 1536, 9, 3, 64, 49152, 8192, 1e5, 0, true},
    {"smollm2-360m", "llama", 32, 960, 2560, 15, 5, 64, 49152, 8192, 1e5, 0, true},
    {"smollm2-1.7b", "llama", 24, 2048, 8192, 32, 32, 64, 49152, 8192, 1.3e5, 0, true},
    {"llama-3.2-1b", "llama", 16, 2048, 8192, 32, 8, 64, 128256, 131072, 5e5, 32, true},
    {"llama-3.1-8b", "llama", 32, 4096, 14336, 32, 8, 128, 128256, 131072, 5e5, 8, false},
    {"llama-3.3-70b", "llama", 80, 8192, 28672, 64, 8, 128, 128256, 131072, 5e5, 8, false},
    {"qwen3-0.6b", "qwen3", 28, 1024, 3072, 16, 8, 128, 151936, 40960, 1e6, 0, true},
    {"qwen3-8b", "qwen3", 36, 4096, 12288, 32, 8, 128, 151936, 40960, 1e6, 0, false},
};

ModelShape ShapeOf(const Entry& entry) {
  ModelShape s;
  s.family = entry.family;
  s.layers = entry.layers;
  s.hidden = entry.hidden;
  s.intermediate = entry.intermediate;
  s.heads = entry.heads;
  s.kv_heads = entry.kv_heads;
  s.head_dim = entry.head_dim;
  s.vocab = entry.vocab;
  s.max_position_embeddings = entry.max_position_embeddings;
  s.tied_embeddings = entry.tied;
  s.qk_norm = s.family == "qwen3";
  s.rope.theta = entry.rope_theta;
  if (entry.llama3_factor > 0) s.rope = {entry.rope_theta, RopeScaling::kLlama3, entry.llama3_factor, 1.0, 4.0, 8192};
  return s;
}

}  // namespace

std::vector<std::string> BenchShapeNames() {
  std::vector<std::string> names;
  for (const Entry& entry : kEntries) names.emplace_back(entry.name);
  return names;
}

absl::StatusOr<ModelShape> BenchShape(const std::string& name_or_path) {
  for (const Entry& entry : kEntries) {
    if (name_or_path == entry.name) return ShapeOf(entry);
  }
  if (name_or_path.size() > 5 && name_or_path.substr(name_or_path.size() - 5) == ".json") {
    LH_ASSIGN_OR_RETURN(const std::string text, ReadFile(name_or_path, limits::kMaxJsonFileBytes));
    return ModelShapeFromConfigJson(text);
  }
  std::string names;
  for (const std::string& name : BenchShapeNames()) names += (names.empty() ? "" : ", ") + name;
  return InvalidField("--shape", "is \"" + name_or_path + "\"; it is a path ending in .json, or one of " + names);
}

}  // namespace longhaul
