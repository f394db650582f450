#include "worker/train/export.h"

#include <algorithm>

#include "base/error.h"

namespace longhaul::train {

const std::vector<std::string>& ExportedFiles() {
  static const std::vector<std::string> files = {"README.md", "adapter_config.json", "adapter_model.safetensors"};
  return files;
}

absl::Status ExportAdapter(const std::string& folder, const MemoryPlan& plan, const Hyper& hyper,
                           const Adapter& adapter, const ExportFacts& facts) {
  LH_CHECK(adapter.master().dtype == kernels::DType::kF32);
  formats::AdapterConfig config;
  config.base_model_name_or_path = facts.base_model;
  config.r = plan.train.lora_rank;
  config.lora_alpha = hyper.lora_alpha;
  config.lora_dropout = hyper.lora_dropout;
  config.target_modules = LoraTargetNames(plan.train.lora_targets);
  config.use_rslora = hyper.use_rslora;
  std::vector<formats::AdapterTensor> tensors;
  adapter.Download();
  const float* const master = adapter.host().master.as<float>();
  for (const LoraModule& module : adapter.modules()) {
    const std::string target = LoraTargetName(module.target);
    tensors.push_back({formats::LoraAKey(module.layer, target), {adapter.rank(), module.in}, master + module.a_offset});
    tensors.push_back(
        {formats::LoraBKey(module.layer, target), {module.out, adapter.rank()}, master + module.b_offset});
  }
  formats::ModelCard card;
  card.title = "LoRA adapter for " + facts.base_model;
  card.base_model = facts.base_model;
  card.tags = {"lora", "longhaul"};
  card.facts = facts.card;
  return formats::WriteAdapter(folder, config, tensors, card);
}

absl::Status ImportAdapter(const formats::LoadedAdapter& loaded, const Adapter& adapter) {
  const auto mismatch = [](const std::string& what) {
    return MakeError(absl::StatusCode::kInvalidArgument, "INVALID_ADAPTER",
                     "the adapter does not fit the plan: " + what);
  };
  if (loaded.config.r != adapter.rank()) {
    return mismatch("rank " + std::to_string(loaded.config.r) + ", planned " + std::to_string(adapter.rank()));
  }
  if (loaded.pairs.size() != adapter.modules().size()) {
    return mismatch(std::to_string(loaded.pairs.size()) + " modules, planned " +
                    std::to_string(adapter.modules().size()));
  }
  LH_CHECK(adapter.master().dtype == kernels::DType::kF32);
  float* const master = adapter.host().master.as<float>();
  for (const LoraModule& module : adapter.modules()) {
    const auto pair = std::find_if(loaded.pairs.begin(), loaded.pairs.end(), [&](const formats::LoraPair& p) {
      return p.layer == module.layer && p.target == LoraTargetName(module.target);
    });
    if (pair == loaded.pairs.end()) {
      return mismatch("no " + formats::LoraModulePath(module.layer, LoraTargetName(module.target)));
    }
    std::copy(pair->a.begin(), pair->a.end(), master + module.a_offset);
    std::copy(pair->b.begin(), pair->b.end(), master + module.b_offset);
  }
  adapter.Upload();
  return absl::OkStatus();
}

}  // namespace longhaul::train
