// The engine on a CUDA device beside the same engine on the CPU in f32, over the same weights.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "base/half.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/device_rates.h"
#include "tests/worker/train/rig.h"

namespace longhaul::train {

// Sizes that the device's kernels take, few enough that the CPU is quick.
inline ModelShape CudaTinyShape(bool qwen3 = false, int64_t head_dim = 64) {
  ModelShape s = TinyShape(qwen3, /*tied=*/!qwen3);
  s.hidden = 128;
  s.intermediate = 192;
  s.heads = 4;
  s.kv_heads = 2;
  s.head_dim = head_dim;
  s.vocab = 520;
  s.max_position_embeddings = 512;
  return s;
}

inline TrainShape CudaTinyTrain(int64_t batch, int64_t length, int64_t rank = 8) {
  TrainShape train;
  train.compute = ComputeType::kBF16;
  train.base = BaseWeights::kNf4;
  train.lora_rank = rank;
  train.batch_size = batch;
  train.sequence_length = length;
  return train;
}

inline DeviceFacts ThisGpu() {
  const auto devices = kernels::CudaDevices();
  DeviceFacts facts;
  if (!devices.ok() || devices->empty()) {
    ADD_FAILURE() << "no CUDA device: " << devices.status();
    return facts;
  }
  facts.kind = DeviceKind::kCuda;
  facts.device_class = devices->front().name;
  facts.isa = "sm_" + std::to_string(devices->front().compute_capability);
  facts.device_bytes = devices->front().memory_bytes;
  const auto cudnn = kernels::CudnnVersion();
  EXPECT_TRUE(cudnn.ok()) << cudnn.status();
  facts.cudnn_version = cudnn.value_or(0);
  facts.has_fp8 = true;  // what needs it asks the engine
  facts.host_bytes = int64_t{8} << 30;
  facts.cpu_threads = 2;
  return facts;
}

struct CudaTweaks {
  int64_t keep_all_layers = -1;  // -1: as planned
  int64_t cached_layers = -1;
  int64_t token_tile_rows = 0;
  int64_t loss_tile_rows = 0;
  int64_t keep_attention_layers = 0;
  bool host = false;  // checkpoints and embedding; with heads in groups also head and moments
  int64_t attention_calls = 1;
  bool grouped = false;
  bool host_attention = false;
  bool host_head = false;  // alone
};

inline MemoryPlan CudaPlan(const ModelShape& shape, const TrainShape& train, const CudaTweaks& tweaks = {}) {
  auto plan = MakePlan(shape, train, ThisGpu(), {});
  EXPECT_TRUE(plan.ok()) << plan.status();
  if (tweaks.keep_all_layers >= 0) plan->choices.keep_all_layers = tweaks.keep_all_layers;
  plan->choices.keep_attention_layers = tweaks.keep_attention_layers;
  plan->choices.host_checkpoints = tweaks.host;
  plan->choices.attention_calls = tweaks.attention_calls;
  plan->choices.host_embedding = tweaks.host && !shape.tied_embeddings;
  plan->choices.grouped_attention = tweaks.grouped;
  plan->choices.host_attention = tweaks.host_attention;
  plan->choices.host_head = tweaks.host_head || (tweaks.grouped && tweaks.host && !shape.tied_embeddings);
  plan->choices.host_optimizer = tweaks.grouped && tweaks.host;
  if (tweaks.cached_layers >= 0) plan->choices.cached_layers = tweaks.cached_layers;
  if (tweaks.token_tile_rows > 0) plan->choices.token_tile_rows = tweaks.token_tile_rows;
  if (tweaks.loss_tile_rows > 0) plan->choices.loss_tile_rows = tweaks.loss_tile_rows;
  LayOutPlan(&*plan);
  return *plan;
}

// The same job on the CPU, in f32.
inline MemoryPlan CpuTwin(const MemoryPlan& plan) {
  TrainShape train = plan.train;
  train.compute = ComputeType::kF32;
  return TinyPlan(plan.shape, train);
}

// Values that bf16 holds, stored as such: then both engines dequantise to the same weights.
class Bf16Source final : public WeightSource {
 public:
  explicit Bf16Source(ModelShape shape) : made_up_(std::move(shape), 3) {}
  const ModelShape& shape() const override { return made_up_.shape(); }
  absl::Status ReadRows(const std::string& name, int64_t begin, int64_t end, float* out) const override {
    const absl::Status status = made_up_.ReadRows(name, begin, end, out);
    const int64_t cols = Columns(name);
    for (int64_t i = 0; i < (end - begin) * cols; ++i) out[i] = Bf16ToFloat(FloatToBf16(out[i]));
    return status;
  }
  StoredAs Type(const std::string&) const override { return StoredAs::kBF16; }

 private:
  int64_t Columns(const std::string& name) const {
    const ModelShape& s = shape();
    const auto is = [&](const char* part) { return name.find(part) != std::string::npos; };
    if (is("o_proj")) return s.q_dim();
    if (is("down_proj")) return s.intermediate;
    return is("q_norm") || is("k_norm") ? s.head_dim : s.hidden;
  }
  SyntheticWeightSource made_up_;
};

// f32 on the device, or wherever the rig is.
inline std::vector<double> Downloaded(const Rig& rig, const kernels::Tensor& t) {
  std::vector<float> values(static_cast<size_t>(t.rows * t.cols));
  rig.exec->Download(values.data(), t.data, static_cast<int64_t>(values.size() * sizeof(float)));
  rig.exec->Synchronize();
  return {values.begin(), values.end()};
}

inline double Cosine(const std::vector<double>& a, const std::vector<double>& b) {
  double dot = 0, aa = 0, bb = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    dot += a[i] * b[i];
    aa += a[i] * a[i];
    bb += b[i] * b[i];
  }
  return dot / std::sqrt(aa * bb);
}

}  // namespace longhaul::train
