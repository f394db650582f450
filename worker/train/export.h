// The trained adapter as PEFT's files, straight from the arena. The same training gives the same bytes: no times, no
// names of hosts in adapter_config.json and adapter_model.safetensors.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/formats/peft_adapter.h"
#include "worker/train/adapter.h"
#include "worker/train/hyper.h"

namespace longhaul::train {

struct ExportFacts {
  std::string base_model;                                 // base_model_name_or_path
  std::vector<std::pair<std::string, std::string>> card;  // rows of the model card's table
};

// Writes the adapter into `folder`. REQUIRES: an f32 plan.
absl::Status ExportAdapter(const std::string& folder, const MemoryPlan& plan, const Hyper& hyper,
                           const Adapter& adapter, const ExportFacts& facts);
// Names of what ExportAdapter writes.
const std::vector<std::string>& ExportedFiles();

// Copies an adapter that was read from files into the arena. INVALID_ARGUMENT where it does not have exactly the
// plan's targets and rank.
absl::Status ImportAdapter(const formats::LoadedAdapter& loaded, const Adapter& adapter);

}  // namespace longhaul::train
