// The memory plan as JSON: what travels to the trainer. Reading it trusts nothing.
#include "base/error.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "model/cuda_layout.h"
#include "model/cuda_plan.h"
#include "model/json_fields.h"
#include "model/memory_plan.h"
#include "model/plan_layout.h"

namespace longhaul {
namespace {

using nlohmann::json;

constexpr size_t kMaxPlanJsonBytes = 1 << 20;
constexpr size_t kMaxRegions = 256;
constexpr int64_t kMostBytes = int64_t{1} << 60;

const std::vector<std::string>& DeviceNames() {
  static const std::vector<std::string> names = {"cpu", "cuda"};
  return names;
}

const std::vector<std::string>& SpaceNames() {
  static const std::vector<std::string> names = {"host", "device", "pinned"};
  return names;
}

const std::vector<std::string>& PackedAttentionNames() {
  static const std::vector<std::string> names = {"together", "each", "reference"};
  return names;
}

const std::vector<std::string>& KindNames() {
  static const std::vector<std::string> names = {"train", "generate"};
  return names;
}

absl::Status Invalid(const std::string& what) {
  return MakeError(absl::StatusCode::kInvalidArgument, "INVALID_PLAN", "memory plan: " + what);
}

absl::Status ReadChoices(const json& object, const MemoryPlan& plan, PlanChoices* choices) {
  JsonFields fields(object, "memory plan: choices");
  fields.Int("keep_all_layers", 0, plan.shape.layers, &choices->keep_all_layers);
  fields.Int("token_tile_rows", 1, PlannedRows(plan), &choices->token_tile_rows);
  fields.Int("loss_tile_rows", 1, PlannedRows(plan), &choices->loss_tile_rows);
  fields.Int("cpu_threads", 1, 4096, &choices->cpu_threads);
  fields.Bool("packed_weights", &choices->packed_weights);
  fields.String("isa", 64, &choices->isa);
  if (plan.device == DeviceKind::kCuda) {
    fields.Int("cached_layers", 0, plan.shape.layers, &choices->cached_layers);
    fields.Int("documents", 1, limits::kMaxSdpaBatch, &choices->documents);
    fields.Int("keep_attention_layers", 0, plan.shape.layers - choices->keep_all_layers,
               &choices->keep_attention_layers);
    fields.Int("attention_calls", 1, plan.shape.heads, &choices->attention_calls);
    fields.Bool("host_checkpoints", &choices->host_checkpoints);
    fields.Bool("host_embedding", &choices->host_embedding);
    fields.Bool("grouped_attention", &choices->grouped_attention);
    fields.Bool("host_attention", &choices->host_attention);
    fields.Bool("host_head", &choices->host_head);
    fields.Bool("host_optimizer", &choices->host_optimizer);
    int packed = 0;
    fields.Choice("packed_attention", PackedAttentionNames(), &packed);
    choices->packed_attention = static_cast<PackedAttention>(packed);
  }
  return fields.status();
}

absl::Status ReadRegions(const json& array, std::vector<PlanRegion>* regions) {
  for (const json& item : array) {
    PlanRegion region;
    int64_t live = 0;
    JsonFields fields(item, "memory plan: region " + std::to_string(regions->size()));
    fields.String("name", 64, &region.name);
    fields.Int("offset_bytes", 0, kMostBytes, &region.offset_bytes);
    fields.Int("bytes", 1, kMostBytes, &region.bytes);
    fields.Int("live", 1, (kPhaseSave << 1) - 1, &live);
    int space = 0;
    if (fields.Find("space") != nullptr) fields.Choice("space", SpaceNames(), &space);
    region.space = static_cast<PlanSpace>(space);
    LH_RETURN_IF_ERROR(fields.status());
    region.live = static_cast<uint32_t>(live);
    regions->push_back(std::move(region));
  }
  return absl::OkStatus();
}

// The plan is executed, never recomputed; but a plan whose regions are not what its own choices lay out was damaged, or
// made by another version that forgot to change kPlanVersion.
absl::Status CheckLayout(const MemoryPlan& plan) {
  if (ApproximateBytes(plan) > kMaxPlanBytes) return Invalid("is too large");
  if (plan.device == DeviceKind::kCuda) {
    DeviceFacts facts;
    facts.device_class = "of the plan";
    facts.isa = plan.choices.isa;
    facts.has_fp8 = true;  // what the device has was asked when the plan was made
    LH_RETURN_IF_ERROR(CheckCudaInputs(plan.shape, plan.train, facts));
    if (!CanCutHeads(plan.shape, plan.choices.attention_calls, plan.choices.grouped_attention)) {
      return Invalid("cuts a group of heads");
    }
    if (plan.choices.grouped_attention && (plan.choices.keep_all_layers > 0 || !CanGroupHeads(plan.train))) {
      return Invalid("makes layers in groups of heads that it keeps whole or cannot cut");
    }
    if (plan.choices.host_attention && !plan.choices.grouped_attention) {
      return Invalid("keeps attention in host memory without groups of heads");
    }
    // Of the library's version no more is known here.
    facts.cudnn_version = kOldestRaggedCudnn;
    const PackedAttention fastest = FastestPackedAttention(plan.shape, plan.train, facts);
    if (plan.choices.packed_attention != PackedAttention::kReference && plan.choices.packed_attention != fastest) {
      return Invalid("counts on attention kernels that the library does not have");
    }
    if (plan.choices.host_head && plan.shape.tied_embeddings) return Invalid("keeps the embedding's head from it");
    if (plan.train.base == BaseWeights::kAsStored && plan.choices.cached_layers < plan.shape.layers) {
      return Invalid("has layers without weights");
    }
  } else if (plan.choices.packed_weights && plan.train.compute == ComputeType::kF64)
    return Invalid("packs f64 weights");
  if (plan.device == DeviceKind::kCpu && !plan.choices.packed_weights && plan.train.compute == ComputeType::kBF16)
    return Invalid("has plain bf16 weights");
  MemoryPlan again = plan;
  LayOutPlan(&again);
  if (again.regions.size() != plan.regions.size()) {
    return Invalid("has " + std::to_string(plan.regions.size()) + " regions; its choices give " +
                   std::to_string(again.regions.size()));
  }
  for (size_t i = 0; i < plan.regions.size(); ++i) {
    if (!(again.regions[i] == plan.regions[i])) {
      return Invalid("region \"" + plan.regions[i].name + "\" is not what the plan's choices give");
    }
  }
  if (again.arena_bytes != plan.arena_bytes || again.device_arena_bytes != plan.device_arena_bytes) {
    return Invalid("arena_bytes is not what the regions add up to");
  }
  if (again.device_bytes_total != plan.device_bytes_total) {
    return Invalid("device_bytes_total is not the sum of its parts");
  }
  if (again.host_bytes_total != plan.host_bytes_total) return Invalid("host_bytes_total is not the sum of its parts");
  return absl::OkStatus();
}

}  // namespace

std::string MemoryPlanToJson(const MemoryPlan& plan) {
  json regions = json::array();
  for (const PlanRegion& region : plan.regions) {
    regions.push_back(
        {{"name", region.name}, {"offset_bytes", region.offset_bytes}, {"bytes", region.bytes}, {"live", region.live}});
    if (region.space != PlanSpace::kHost) regions.back()["space"] = SpaceNames()[static_cast<size_t>(region.space)];
  }
  const PlanChoices& c = plan.choices;
  json object = {{"version", plan.version},
                 {"kind", KindNames()[static_cast<size_t>(plan.kind)]},
                 {"shape", ModelShapeToJson(plan.shape)},
                 {"train", TrainShapeToJson(plan.train)},
                 {"choices",
                  {{"keep_all_layers", c.keep_all_layers},
                   {"token_tile_rows", c.token_tile_rows},
                   {"loss_tile_rows", c.loss_tile_rows},
                   {"cpu_threads", c.cpu_threads},
                   {"packed_weights", c.packed_weights},
                   {"isa", c.isa}}},
                 {"regions", std::move(regions)},
                 {"arena_bytes", plan.arena_bytes},
                 {"runtime_host_bytes", plan.runtime_host_bytes},
                 {"host_bytes_total", plan.host_bytes_total},
                 {"device_bytes_total", plan.device_bytes_total},
                 {"disk_bytes", plan.disk_bytes},
                 {"step_seconds", plan.step_seconds}};
  if (plan.device == DeviceKind::kCuda) {
    object["device"] = DeviceNames()[static_cast<size_t>(plan.device)];
    object["device_arena_bytes"] = plan.device_arena_bytes;
    object["context_bytes"] = plan.context_bytes;
    object["choices"]["cached_layers"] = c.cached_layers;
    object["choices"]["documents"] = c.documents;
    object["choices"]["keep_attention_layers"] = c.keep_attention_layers;
    object["choices"]["attention_calls"] = c.attention_calls;
    object["choices"]["host_checkpoints"] = c.host_checkpoints;
    object["choices"]["host_embedding"] = c.host_embedding;
    object["choices"]["grouped_attention"] = c.grouped_attention;
    object["choices"]["host_attention"] = c.host_attention;
    object["choices"]["host_head"] = c.host_head;
    object["choices"]["host_optimizer"] = c.host_optimizer;
    object["choices"]["packed_attention"] = PackedAttentionNames()[static_cast<size_t>(c.packed_attention)];
  }
  return object.dump(-1, ' ', false, json::error_handler_t::replace);
}

absl::StatusOr<MemoryPlan> MemoryPlanFromJson(const std::string& text) {
  if (text.size() > kMaxPlanJsonBytes) {
    return Invalid("has " + std::to_string(text.size()) + " bytes; at most " + std::to_string(kMaxPlanJsonBytes));
  }
  const json object = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (object.is_discarded()) return Invalid("is not valid JSON");
  JsonFields fields(object, "memory plan");
  MemoryPlan plan;
  int kind = 0;
  fields.Int("version", 0, 1'000'000, &plan.version);
  LH_RETURN_IF_ERROR(fields.status());
  if (plan.version != kPlanVersion) {
    return Invalid("is of version " + std::to_string(plan.version) + "; this build runs version " +
                   std::to_string(kPlanVersion));
  }
  fields.Choice("kind", KindNames(), &kind);
  fields.Int("arena_bytes", 0, kMostBytes, &plan.arena_bytes);
  fields.Int("runtime_host_bytes", 0, int64_t{1} << 50, &plan.runtime_host_bytes);
  fields.Int("host_bytes_total", 0, kMostBytes, &plan.host_bytes_total);
  fields.Int("device_bytes_total", 0, kMostBytes, &plan.device_bytes_total);
  fields.Int("disk_bytes", 0, kMostBytes, &plan.disk_bytes);
  fields.Double("step_seconds", 0, 1e12, &plan.step_seconds);
  int device = 0;
  if (fields.Find("device") != nullptr) fields.Choice("device", DeviceNames(), &device);
  plan.device = static_cast<DeviceKind>(device);
  if (plan.device == DeviceKind::kCuda) {
    fields.Int("device_arena_bytes", 0, kMostBytes, &plan.device_arena_bytes);
    fields.Int("context_bytes", 0, kMostBytes, &plan.context_bytes);
  }
  const json* shape = fields.RequiredObject("shape");
  const json* train = fields.RequiredObject("train");
  const json* choices = fields.RequiredObject("choices");
  const json* regions = fields.RequiredArray("regions", kMaxRegions);
  LH_RETURN_IF_ERROR(fields.status());
  plan.kind = static_cast<PlanKind>(kind);
  LH_ASSIGN_OR_RETURN(plan.shape, ModelShapeFromJson(*shape));
  LH_ASSIGN_OR_RETURN(plan.train, TrainShapeFromJson(*train));
  LH_RETURN_IF_ERROR(ReadChoices(*choices, plan, &plan.choices));
  LH_RETURN_IF_ERROR(ReadRegions(*regions, &plan.regions));
  LH_RETURN_IF_ERROR(CheckLayout(plan));
  const int64_t disk_bytes = plan.disk_bytes;
  LayOutPlan(&plan);  // fills in the parts for people
  plan.disk_bytes = disk_bytes;
  return plan;
}

}  // namespace longhaul
