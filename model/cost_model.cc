#include "model/cost_model.h"

#include <algorithm>

namespace longhaul {
namespace {

// Shares of the measured rate of a large GEMM that each kind of work reaches, measured on SmolLM2-135M on two cores
// (tests/bench/results). Elementwise work is in the linears' share.
constexpr double kLinearEfficiency = 0.85;
constexpr double kLoraEfficiency = 0.35;
constexpr double kAttentionEfficiency = 0.45;
// cuDNN's, of a long document: 50% of a GEMM's rate at 2,048 tokens, 71% at 16,384, 74% at 65,536 (steps of Llama 3.1
// 8B and Qwen3-8B on an H200: tests/bench/results/cuda_engine.md).
constexpr double kCudnnEfficiency = 0.75, kCudnnHalfEfficientTokens = 1024;
// Our own attention kernels of a GPU: 2.1 TFLOP/s forward and 1.2 backward, 1.35 together, where a GEMM reaches 710
// (an H200, 8B's heads, a document of 2,048: tests/bench/results/cuda_kernels.md).
constexpr double kReferenceAttentionEfficiency = 1.35 / 710;
// A step of 8B with FP8 linears against one in bf16 (tests/bench/results/cuda_engine.md): products alone are 1.7 times
// as fast, their operands are to be made.
constexpr double kFp8Speedup = 1.4;
// AdamW reads gradient, master and two moments in f32 and writes the last three.
constexpr double kOptimizerBytesPerParam = 28, kMomentBytesPerParam = 16;
constexpr double kCpuOptimizerBytesPerSecond = 8e9;
// Of a GPU that has not been measured: between those of compute capability 8.6 and 9.0.
constexpr double kGpuMemoryBytesPerSecond = 1e12;
// NF4 with nested scales: half a byte and 1/64 read, two written. A step gets so much of the memory's rate
// (25 ms of Qwen3-8B's step in 8 GiB on an H200: tests/bench/results/cuda_engine.md).
constexpr double kDequantiseBytesPerWeight = 0.5 + 1.0 / 64 + 2, kDequantiseEfficiency = 0.47;

double GpuMemoryRate(const DeviceFacts& facts) {
  return facts.memory_bytes_per_second > 0 ? facts.memory_bytes_per_second : kGpuMemoryBytesPerSecond;
}

double OptimizerSeconds(const MemoryPlan& plan, const DeviceFacts& facts) {
  const double params = static_cast<double>(AdapterParams(plan.shape, plan.train));
  if (plan.device == DeviceKind::kCpu) return params * kOptimizerBytesPerParam / kCpuOptimizerBytesPerSecond;
  const double memory = GpuMemoryRate(facts);
  if (!plan.choices.host_optimizer || facts.copy_bytes_per_second <= 0)
    return params * kOptimizerBytesPerParam / memory;
  return params * ((kOptimizerBytesPerParam - kMomentBytesPerParam) / memory +
                   kMomentBytesPerParam / facts.copy_bytes_per_second);
}

}  // namespace

StepFlops CountFlops(const MemoryPlan& plan, double trained_fraction) {
  const ModelShape& s = plan.shape;
  const TrainShape& t = plan.train;
  const double n = static_cast<double>(t.tokens());
  const double layers = static_cast<double>(s.layers);
  const double recomputed = static_cast<double>(s.layers - plan.choices.keep_all_layers);
  const double linear_forward = 2.0 * n * static_cast<double>(s.LinearParamsPerLayer());
  const double lora_forward = 2.0 * n * static_cast<double>(AdapterParams(s, t)) / layers;
  // Two products over half of a square, per document of the longest length.
  const double attention_forward = 2.0 * n * static_cast<double>(t.longest()) * static_cast<double>(s.q_dim());

  StepFlops flops;
  flops.linear = layers * 2.0 * linear_forward;
  flops.lora = layers * 3.0 * lora_forward;
  flops.attention = layers * 3.5 * attention_forward;
  flops.head = 4.0 * n * trained_fraction * static_cast<double>(s.vocab) * static_cast<double>(s.hidden);
  // The down projection's output is never needed again.
  const double down = 2.0 * n * static_cast<double>(s.hidden * s.intermediate);
  flops.attention_recompute =
      (recomputed - static_cast<double>(plan.choices.keep_attention_layers)) * attention_forward;
  flops.recompute = recomputed * (linear_forward - down + lora_forward) + flops.attention_recompute;
  return flops;
}

namespace {

bool ByReferenceKernels(const MemoryPlan& plan) {
  return plan.device == DeviceKind::kCuda && plan.choices.packed_attention == PackedAttention::kReference;
}

double CudnnEfficiency(int64_t document_tokens) {
  const auto tokens = static_cast<double>(document_tokens);
  return kCudnnEfficiency * tokens / (tokens + kCudnnHalfEfficientTokens);
}

double AttentionEfficiency(const MemoryPlan& plan) {
  if (plan.device == DeviceKind::kCpu) return kAttentionEfficiency;
  return ByReferenceKernels(plan) ? kReferenceAttentionEfficiency : CudnnEfficiency(plan.train.longest());
}

}  // namespace

double PricedRecompute(const MemoryPlan& plan) {
  const StepFlops flops = CountFlops(plan);
  if (!ByReferenceKernels(plan)) return flops.recompute;
  return flops.recompute - flops.attention_recompute +
         flops.attention_recompute * kLinearEfficiency / kReferenceAttentionEfficiency;
}

double DequantiseBytes(const MemoryPlan& plan) {
  if (plan.device == DeviceKind::kCpu || plan.train.base != BaseWeights::kNf4) return 0;
  const PlanChoices& c = plan.choices;
  const int64_t layers = plan.shape.layers;
  const int64_t linears = plan.shape.LinearParamsPerLayer(), down = plan.shape.hidden * plan.shape.intermediate;
  const int64_t weights = 2 * (layers - c.cached_layers) * linears +
                          (layers - std::max(c.cached_layers, c.keep_all_layers)) * (linears - down);
  const int64_t tiles = (plan.train.tokens() + c.token_tile_rows - 1) / std::max<int64_t>(1, c.token_tile_rows);
  return static_cast<double>(tiles) * static_cast<double>(weights) * kDequantiseBytesPerWeight;
}

double ReferenceAttentionSlowdown(const MemoryPlan& plan) {
  return CudnnEfficiency(plan.train.longest()) / kReferenceAttentionEfficiency;
}

double PredictStepSeconds(const MemoryPlan& plan, const DeviceFacts& facts) {
  if (facts.gemm_flops <= 0) return 0;
  const StepFlops flops = CountFlops(plan);
  double rate = facts.gemm_flops;
  // A GPU's rate is its own, however many threads feed it.
  if (plan.device == DeviceKind::kCpu) {
    rate *= static_cast<double>(plan.choices.cpu_threads) / static_cast<double>(std::max(1, facts.cpu_threads));
  }
  // The probe measures the faster type; f32 on a bf16 device runs at about half of it (BUILD.md).
  if (facts.has_bf16 && plan.train.compute == ComputeType::kF32) rate /= 2;
  const double linear_rate = rate * kLinearEfficiency * (plan.train.compute == ComputeType::kFP8 ? kFp8Speedup : 1.0);
  const double attention_rate = rate * AttentionEfficiency(plan);
  const double seconds = (flops.linear + PricedRecompute(plan)) / linear_rate +
                         flops.head / (rate * kLinearEfficiency) + flops.lora / (rate * kLoraEfficiency) +
                         flops.attention / attention_rate +
                         DequantiseBytes(plan) / (GpuMemoryRate(facts) * kDequantiseEfficiency);
  return seconds * static_cast<double>(plan.train.accumulation_steps) + OptimizerSeconds(plan, facts);
}

}  // namespace longhaul
