// The memory plan: what a job needs and where every byte of it lies, from shapes and facts alone. Pure, microseconds a
// call. The scheduler admits with it, Estimate answers with it, it travels as JSON to the trainer, and the engine
// allocates exactly it (ENGINE.md section 1).
//
// One arena a memory space (a CPU device has one), carved into named regions. A region is live in some phases of a
// step; regions that are never live together may overlay. A region's content survives from one phase to a later one
// only if it is live in all phases between. Thread-safe: free functions on values.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/device_facts.h"
#include "model/model_shape.h"
#include "model/train_shape.h"
#include "nlohmann/json_fwd.hpp"

namespace longhaul {

// Changes whenever the same inputs give other regions or other bits; a worker of another version gets no new attempts.
inline constexpr int kPlanVersion = 5;

// Raised only when a run of the same plan gives other bits than before, on any device: a checkpoint of other bits is
// not continued without allow_nonidentical_resume, so every interrupted job that has one ends there. It is the version
// of plans that bits changed with last: with 5 the loss's gradient is rounded once, and so are rotated heads.
inline constexpr int kPlanBits = 5;

enum class PlanKind { kTrain, kGenerate };

// How much of the budget a plan may use.
enum class PlanShare { kMinimum, kBalanced, kWhole };

struct PlanBudget {
  int64_t host_bytes = 0;    // 0 = the device's facts
  int64_t device_bytes = 0;  // 0 = the device's facts
  PlanShare share = PlanShare::kWhole;
};

// The phases of a step, as bits of PlanRegion::live. Forward and recompute run the same code on the same regions.
enum PlanPhase : uint32_t {
  kPhaseLoad = 1u << 0,
  kPhaseForwardAttention = 1u << 1,
  kPhaseForwardMlp = 1u << 2,
  kPhaseLoss = 1u << 3,
  kPhaseRecompute = 1u << 4,  // of a layer's attention half, in the backward pass
  kPhaseBackwardMlp = 1u << 5,
  kPhaseBackwardAttention = 1u << 6,
  kPhaseUpdate = 1u << 7,
  kPhaseSave = 1u << 8,
};

// Where a region lies. kHost: the only one of a CPU device.
enum class PlanSpace { kHost, kDevice, kPinned };

struct PlanRegion {
  std::string name;
  int64_t offset_bytes = 0;  // in its space's arena; multiple of 64
  int64_t bytes = 0;
  uint32_t live = 0;  // PlanPhase bits
  PlanSpace space = PlanSpace::kHost;
  bool operator==(const PlanRegion&) const = default;
};

// Who computes attention on CUDA where micro-batches are not equal full sequences: of packed documents, or of such that
// differ in length.
enum class PackedAttention {
  kTogether,   // cuDNN, a micro-batch's documents in one call
  kEach,       // cuDNN, a call a document: what is deterministic there takes memory by the square of what it is for
  kReference,  // our own kernels, hundreds of times slower: PlanWarnings says so
};

struct PlanChoices {
  int64_t keep_all_layers = 0;  // layers [0, k) keep every activation; the others keep their input and recompute
  int64_t token_tile_rows = 0;  // rows of a token tile (norms, linears, MLP)
  int64_t loss_tile_rows = 0;   // rows of logits that exist at once
  int cpu_threads = 1;
  bool packed_weights = false;
  std::string isa;  // on CUDA "sm_90"
  // CUDA alone.
  int64_t keep_attention_layers = 0;  // the m layers after those keep attention's output and recompute the linears only
  int64_t cached_layers = 0;      // layers [0, c) lie in bf16 (FP8), the others in NF4 and are dequantised for each use
  int64_t documents = 0;          // that a micro-batch has at most
  int64_t attention_calls = 1;    // the heads are cut into so many calls, whole groups each
  bool host_checkpoints = false;  // layers' inputs wait in pinned memory for the backward pass
  bool host_embedding = false;    // the table lies in pinned memory and is read from there
  bool grouped_attention = false;  // q, k, v and their gradients exist for a group of heads at a time
  bool host_attention = false;     // what keep_attention_layers keep waits in pinned memory
  bool host_head = false;          // lm_head lies in pinned memory and comes for the loss
  bool host_optimizer = false;     // the moments lie in pinned memory and are updated there
  PackedAttention packed_attention = PackedAttention::kTogether;
  bool operator==(const PlanChoices&) const = default;
};

struct PlanPart {
  std::string name;  // weights, adapters, optimizer, checkpoints, activations, loss_tile, workspace, dataset, runtime
  int64_t bytes = 0;
};

struct MemoryPlan {
  int version = kPlanVersion;
  PlanKind kind = PlanKind::kTrain;
  DeviceKind device = DeviceKind::kCpu;
  ModelShape shape;
  TrainShape train;
  PlanChoices choices;
  std::vector<PlanRegion> regions;
  int64_t arena_bytes = 0;         // of host memory; pinned on CUDA
  int64_t device_arena_bytes = 0;  // 0 on a CPU device
  int64_t context_bytes = 0;       // device memory outside the arena, tables of pinned pages aside: kernels, libraries
  int64_t runtime_host_bytes = 0;
  int64_t host_bytes_total = 0;    // arena + dataset + runtime
  int64_t device_bytes_total = 0;  // device arena, context and tables of pinned pages; 0 on a CPU device
  int64_t disk_bytes = 0;          // dataset, local checkpoints, artifact, log
  double step_seconds = 0;         // predicted, one update; 0 where the device was not measured
  std::vector<PlanPart> parts;     // of host_bytes_total (CUDA: device_bytes_total), in bytes that add up to it

  // Of activations.
  int64_t element_bytes() const {
    if (device == DeviceKind::kCuda) return 2;
    return train.compute == ComputeType::kF64 ? 8 : 4;
  }
};

// The fastest plan within the budget and share.
// Errors: INVALID_ARGUMENT (shapes, facts); UNIMPLEMENTED DEVICE_UNSUPPORTED (what the engine cannot do on the device:
// a compute type, and on CUDA sizes off 8, or 16 in FP8, devices older than 8.0, or without FP8 products);
// RESOURCE_EXHAUSTED PLAN_DOES_NOT_FIT with the bytes needed and there, by part.
absl::StatusOr<MemoryPlan> MakePlan(const ModelShape& shape, const TrainShape& train, const DeviceFacts& facts,
                                    const PlanBudget& budget);

// For `longhaul chat`: prompt and answer of at most train.sequence_length tokens, one sequence; the adapter where
// `train` has targets (lora_targets 0 = the base alone).
absl::StatusOr<MemoryPlan> MakeGeneratePlan(const ModelShape& shape, const TrainShape& train, const DeviceFacts& facts);

// The smallest plan, whatever the budget: what a job needs at the least.
absl::StatusOr<MemoryPlan> MinimumPlan(const ModelShape& shape, const TrainShape& train, const DeviceFacts& facts);

// Largest sequence_length up to `limit` whose minimum plan fits, all else equal; 0 where not even one token does.
int64_t LongestFittingSequence(const ModelShape& shape, const TrainShape& train, const DeviceFacts& facts,
                               const PlanBudget& budget, int64_t limit);

// "needs 3.10 GiB, 2.00 GiB are there: weights 1.10 GiB, checkpoints 0.90 GiB, ..."
std::string DescribeShortage(const MemoryPlan& plan, int64_t available_bytes);
// The choices, for people: "keeps 12 of 30 layers, token tiles of 256, loss tiles of 128, 2 threads, plain f32
// weights".
std::string DescribeChoices(const MemoryPlan& plan);
// What of the plan is far slower than a user would think, why, and what to do: one text each.
std::vector<std::string> PlanWarnings(const MemoryPlan& plan);

// Layer inputs in bf16 for every layer: the figure that long contexts are compared by (tokens x layers x hidden x 2).
int64_t CheckpointBytes(const ModelShape& shape, int64_t tokens);

// SHA-256 over what a bit-identical resume must reproduce: kPlanBits, compute type, base weights, tiles, threads, ISA,
// GEMM library. Not keep_all_layers: recompute gives the same bits (tests/worker/train/decoder_test.cc).
std::string PlanSignature(const MemoryPlan& plan, const std::string& gemm_library);

// Round-trips exactly. FromJson refuses a plan that is not what its own shapes and choices lay out.
std::string MemoryPlanToJson(const MemoryPlan& plan);
absl::StatusOr<MemoryPlan> MemoryPlanFromJson(const std::string& json);

}  // namespace longhaul
