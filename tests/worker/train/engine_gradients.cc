// The engine's loss and LoRA gradients for a model, an adapter and tokens on disk: tests/golden/wide_model.py compares
// them with what Transformers and PEFT compute.
//
//   engine_gradients cpu|cuda|fp8 MODEL_FOLDER ADAPTER_FOLDER TOKENS_FILE OUT_FOLDER
//
// TOKENS_FILE: text, "sequences length" and then that many ids; every token but a sequence's first is a target. Prints
// the mean loss. OUT_FOLDER becomes a PEFT adapter whose values are the gradients. The base is quantised to NF4.
#include <cstdio>
#include <fstream>
#include <string>
#include <vector>

#include "tests/worker/train/cuda_rig.h"
#include "worker/formats/model_source.h"
#include "worker/formats/peft_adapter.h"
#include "worker/train/export.h"

namespace longhaul::train {
namespace {

template <typename T>
T Must(absl::StatusOr<T> value) {
  if (value.ok()) return *std::move(value);
  std::fprintf(stderr, "engine_gradients: %s\n", value.status().ToString().c_str());
  std::exit(1);
}

TinyBatch ReadTokens(const std::string& path) {
  std::ifstream file(path);
  int64_t sequences = 0, length = 0;
  file >> sequences >> length;
  TinyBatch batch({});
  for (int64_t i = 0; i < sequences * length; ++i) {
    int32_t id = 0;
    file >> id;
    batch.ids.push_back(id);
    batch.positions.push_back(static_cast<int32_t>(i % length));
    if (i % length != 0) batch.labels.push_back(id);
    if (i % length + 1 == length) {
      batch.labels.push_back(-100);
      batch.doc_offsets.push_back(i + 1);
    }
  }
  if (!file || batch.ids.empty()) {
    std::fprintf(stderr, "engine_gradients: %s is not a list of tokens\n", path.c_str());
    std::exit(1);
  }
  return batch;
}

MemoryPlan PlanFor(const std::string& device, const ModelShape& shape, const formats::AdapterConfig& config,
                   const TinyBatch& batch) {
  TrainShape train;
  train.compute = device == "cpu" ? ComputeType::kF32 : device == "fp8" ? ComputeType::kFP8 : ComputeType::kBF16;
  train.base = BaseWeights::kNf4;
  train.lora_rank = config.r;
  train.lora_targets = Must(LoraTargetsFromNames(config.target_modules));
  train.batch_size = static_cast<int64_t>(batch.doc_offsets.size()) - 1;
  train.sequence_length = batch.doc_offsets[1];
  return Must(MakePlan(shape, train, device == "cpu" ? ThisCpu() : ThisGpu(), {}));
}

void WriteGradients(const Rig& rig, const formats::AdapterConfig& config, const std::string& folder) {
  const int64_t count = rig.adapter->grad().rows * rig.adapter->grad().cols;
  std::vector<float> values(static_cast<size_t>(count));
  rig.exec->Download(values.data(), rig.adapter->grad().data, count * 4);
  rig.exec->Synchronize();
  std::vector<formats::AdapterTensor> tensors;
  for (const LoraModule& m : rig.adapter->modules()) {
    const std::string target = LoraTargetName(m.target);
    tensors.push_back({formats::LoraAKey(m.layer, target), {config.r, m.in}, values.data() + m.a_offset});
    tensors.push_back({formats::LoraBKey(m.layer, target), {m.out, config.r}, values.data() + m.b_offset});
  }
  const absl::Status written = formats::WriteAdapter(folder, config, tensors, {"gradients", "", {}, {}});
  if (!written.ok()) Must(absl::StatusOr<int>(written));
}

int Main(const std::string& device, const std::string& model, const std::string& adapter, const std::string& tokens,
         const std::string& out) {
  const formats::ModelSource source = Must(formats::ModelSource::Open(model));
  const formats::LoadedAdapter loaded = Must(formats::ReadAdapter(adapter, source.shape()));
  const TinyBatch batch = ReadTokens(tokens);
  const MemoryPlan plan = PlanFor(device, source.shape(), loaded.config, batch);
  Rig rig(plan, ModelWeightSource(source), loaded.config.Scale());
  if (const absl::Status imported = ImportAdapter(loaded, *rig.adapter); !imported.ok()) {
    Must(absl::StatusOr<int>(imported));
  }
  rig.ops->AdapterChanged();
  const auto targets = static_cast<double>(batch.targets());
  const double nats = rig.Step(batch.view(), 1.0 / targets);
  std::printf("%.9f\n", nats / targets);
  WriteGradients(rig, loaded.config, out);
  return 0;
}

}  // namespace
}  // namespace longhaul::train

int main(int argc, char** argv) {
  const std::string device = argc == 6 ? argv[1] : "";
  if (device != "cpu" && device != "cuda" && device != "fp8") {
    std::fprintf(stderr, "engine_gradients cpu|cuda|fp8 MODEL_FOLDER ADAPTER_FOLDER TOKENS_FILE OUT_FOLDER\n");
    return 2;
  }
  return longhaul::train::Main(device, argv[2], argv[3], argv[4], argv[5]);
}
