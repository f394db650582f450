#include "model/cuda_plan.h"

#include <algorithm>
#include <iterator>
#include <utility>
#include <vector>

#include "base/error.h"
#include "kernels/shapes/fp8_linear.h"
#include "model/cost_model.h"
#include "model/cuda_layout.h"
#include "model/plan_search.h"

namespace longhaul {
namespace {

// Tokens a GEMM is given. A tile fills the device from some thousand on; the smallest keeps it half busy.
constexpr int64_t kTileRows[] = {16384, 8192, 4096, 2048};  // what is there is the first that fits
constexpr int64_t kLossTileRows[] = {2048, 1024, 512};      // as above; a row takes 33 KiB, and 4 bytes a hidden column
constexpr int64_t kTokensADocument = 16;  // fewer on average are refused: a pack of one-word documents
constexpr int kLeastComputeCapability = 80;

absl::Status Unsupported(const DeviceFacts& facts, const std::string& what) {
  return MakeError(absl::StatusCode::kUnimplemented, "DEVICE_UNSUPPORTED",
                   "device class \"" + facts.device_class + "\": " + what);
}

}  // namespace

int64_t AvailableDeviceBytes(const DeviceFacts& facts, const PlanBudget& budget) {
  return budget.device_bytes > 0 ? budget.device_bytes : facts.device_bytes;
}

absl::Status CheckCudaInputs(const ModelShape& shape, const TrainShape& train, const DeviceFacts& facts) {
  if (ComputeCapabilityOf(facts.isa) < kLeastComputeCapability) {
    return Unsupported(facts, "is \"" + facts.isa + "\"; the engine needs compute capability 8.0 or newer (bf16)");
  }
  const bool fp8 = train.compute == ComputeType::kFP8;
  if (train.compute != ComputeType::kBF16 && !fp8) {
    return Unsupported(facts, std::string("compute type ") + ComputeTypeName(train.compute) +
                                  " is the CPU's; a GPU trains in bf16 or fp8");
  }
  if (fp8 && !facts.has_fp8) {
    return Unsupported(facts,
                       "is \"" + facts.isa +
                           "\", where cuBLASLt has no FP8 product with a scale a row; compute type fp8 needs one "
                           "(Hopper, compute capability 9.x, has it). Use bf16");
  }
  const int64_t unit = fp8 ? kernels::cuda::kFp8Unit : 8;
  for (const auto& [name, value] : {std::pair{"hidden", shape.hidden},
                                    {"intermediate", shape.intermediate},
                                    {"head_dim", shape.head_dim},
                                    {"q_dim", shape.q_dim()},
                                    {"kv_dim", shape.kv_dim()}}) {
    if (value % unit != 0) {
      return Unsupported(facts, std::string(name) + " is " + std::to_string(value) + "; must be a multiple of " +
                                    std::to_string(unit) + (fp8 ? " in fp8" : ""));
    }
  }
  return absl::OkStatus();
}

namespace {

bool FitsHost(const MemoryPlan& plan, const DeviceFacts& facts) { return plan.host_bytes_total <= facts.host_bytes; }

// The smallest plan whose attention sees all heads of a layer at once.
MemoryPlan SmallestWhole(const ModelShape& shape, const TrainShape& train, const DeviceFacts& facts,
                         PackedAttention packed) {
  MemoryPlan plan;
  plan.device = DeviceKind::kCuda;
  plan.shape = shape;
  plan.train = train;
  plan.choices.isa = facts.isa;
  plan.choices.cpu_threads = train.cpu_threads > 0 ? train.cpu_threads : facts.cpu_threads;
  // Documents, the one that fills up the rows among them.
  plan.choices.documents = train.batch_size + train.tokens() / kTokensADocument + 1;
  // Without 4-bit codes the cache is all there is.
  plan.choices.cached_layers = train.base == BaseWeights::kAsStored ? shape.layers : 0;
  plan.runtime_host_bytes = RuntimeHostBytes(facts, shape.vocab);
  plan.context_bytes = facts.context_bytes > 0 ? facts.context_bytes : kDefaultContextBytes;
  plan.choices.packed_attention = packed;
  plan.choices.attention_calls = shape.kv_heads;
  plan.choices.host_checkpoints = true;
  plan.choices.host_embedding = !shape.tied_embeddings;
  plan.choices.token_tile_rows = std::min(PlannedRows(plan), *std::rbegin(kTileRows));
  plan.choices.loss_tile_rows = std::min(PlannedRows(plan), *std::rbegin(kLossTileRows));
  // Shapes beyond reason are refused before they are laid out (memory_plan.cc).
  if (ApproximateBytes(plan) > kMaxPlanBytes) return plan;
  LayOutPlan(&plan);
  if (!FitsHost(plan, facts)) {
    plan.choices.host_checkpoints = plan.choices.host_embedding = false;
    LayOutPlan(&plan);
  }
  return plan;
}

// The smallest with heads in groups.
MemoryPlan SmallestGrouped(MemoryPlan plan, const DeviceFacts& facts) {
  PlanChoices& c = plan.choices;
  c.grouped_attention = c.host_optimizer = c.host_checkpoints = true;
  c.attention_calls = plan.shape.heads;
  c.host_embedding = c.host_head = !plan.shape.tied_embeddings;
  LayOutPlan(&plan);
  if (!FitsHost(plan, facts)) {
    c.host_optimizer = c.host_checkpoints = c.host_embedding = c.host_head = false;
    LayOutPlan(&plan);
  }
  return plan;
}

MemoryPlan Smallest(const ModelShape& shape, const TrainShape& train, const DeviceFacts& facts,
                    PackedAttention packed) {
  MemoryPlan whole = SmallestWhole(shape, train, facts, packed);
  if (ApproximateBytes(whole) > kMaxPlanBytes || !CanGroupHeads(train)) return whole;
  MemoryPlan grouped = SmallestGrouped(whole, facts);
  return grouped.device_bytes_total < whole.device_bytes_total ? grouped : whole;
}

}  // namespace

MemoryPlan MinimumCudaPlan(const ModelShape& shape, const TrainShape& train, const DeviceFacts& facts) {
  MemoryPlan plan = Smallest(shape, train, facts, FastestPackedAttention(shape, train, facts));
  // What takes memory by the square of the longest document gives way where it does not fit.
  if (plan.choices.packed_attention != PackedAttention::kEach || facts.device_bytes == 0 ||
      plan.device_bytes_total <= facts.device_bytes) {
    return plan;
  }
  MemoryPlan reference = Smallest(shape, train, facts, PackedAttention::kReference);
  return reference.device_bytes_total < plan.device_bytes_total ? reference : plan;
}

namespace {

// Every choice laid out as it is tried.
class Chooser {
 public:
  Chooser(MemoryPlan plan, int64_t device_bytes, int64_t host_bytes)
      : plan_(std::move(plan)), device_bytes_(device_bytes), host_bytes_(host_bytes) {}

  bool Fits() {
    LayOutPlan(&plan_);
    return plan_.device_bytes_total <= device_bytes_ && plan_.host_bytes_total <= host_bytes_;
  }
  void Most(int64_t PlanChoices::*choice, int64_t most) {
    plan_.choices.*choice = MostThatFits(0, most, [&](int64_t value) {
      plan_.choices.*choice = value;
      return Fits();
    });
    LayOutPlan(&plan_);
  }
  PlanChoices& choices() { return plan_.choices; }
  const MemoryPlan& plan() const { return plan_; }

 private:
  MemoryPlan plan_;
  int64_t device_bytes_, host_bytes_;
};

// The first `most` layers keep everything, as far as they fit, and those after them attention's output; or all keep
// attention's output first. Short documents gain by the one, long ones by the other.
void KeepMost(int64_t most, Chooser* chooser) {
  Chooser attention = *chooser;
  chooser->Most(&PlanChoices::keep_all_layers, most);
  chooser->Most(&PlanChoices::keep_attention_layers, most - chooser->choices().keep_all_layers);
  attention.Most(&PlanChoices::keep_attention_layers, most);
  const int64_t kept = attention.choices().keep_attention_layers;
  attention.choices().keep_all_layers = MostThatFits(0, kept, [&](int64_t k) {
    attention.choices().keep_all_layers = k;
    attention.choices().keep_attention_layers = kept - k;
    return attention.Fits();
  });
  attention.choices().keep_attention_layers = kept - attention.choices().keep_all_layers;
  attention.Fits();
  if (PricedRecompute(attention.plan()) < PricedRecompute(chooser->plan())) *chooser = std::move(attention);
}

// Sets the choice to the first of `values` that fits; the last one does already.
template <typename Values>
void FirstThatFits(int64_t PlanChoices::*choice, const Values& values, Chooser* chooser) {
  for (const int64_t value : values) {
    Chooser changed = *chooser;
    changed.choices().*choice = value;
    if (!changed.Fits()) continue;
    *chooser = changed;
    return;
  }
}

// Floating-point operations that a plan does beyond the least, and what it waits for counted as such: checkpoints that
// leave cost up to 2% of a step, an embedding read from the host half a percent, heads in groups 3% (norms once a group
// and narrow products).
double Cost(const MemoryPlan& plan) {
  const StepFlops flops = CountFlops(plan);
  const double useful = flops.total() - flops.recompute;
  return PricedRecompute(plan) + (plan.choices.host_checkpoints ? 0.02 * useful : 0) +
         (plan.choices.host_embedding ? 0.005 * useful : 0) + (plan.choices.grouped_attention ? 0.03 * useful : 0);
}

void ChooseTiles(Chooser* chooser) {
  const MemoryPlan& plan = chooser->plan();
  std::vector<int64_t> calls, tiles, loss_tiles;
  for (int64_t c = 1; c <= plan.choices.attention_calls; ++c) {
    if (CanCutHeads(plan.shape, c, plan.choices.grouped_attention)) calls.push_back(c);
  }
  for (const int64_t rows : kTileRows) tiles.push_back(std::min(PlannedRows(plan), rows));
  for (const int64_t rows : kLossTileRows) loss_tiles.push_back(std::min(PlannedRows(plan), rows));
  FirstThatFits(&PlanChoices::token_tile_rows, tiles, chooser);
  FirstThatFits(&PlanChoices::attention_calls, calls, chooser);
  FirstThatFits(&PlanChoices::loss_tile_rows, loss_tiles, chooser);
}

void CacheMost(int64_t most, Chooser* chooser) {
  if (chooser->plan().train.base == BaseWeights::kNf4) chooser->Most(&PlanChoices::cached_layers, most);
  chooser->Fits();
}

MemoryPlan FastestWhole(Chooser chooser, int64_t most) {
  chooser.Fits();
  ChooseTiles(&chooser);
  // What had left the device comes back where the memory buys no more elsewhere.
  Chooser best = chooser;
  bool found = false;
  for (const bool checkpoints : {false, true}) {
    for (const bool embedding : {false, true}) {
      Chooser away = chooser;
      if ((checkpoints && !away.choices().host_checkpoints) || (embedding && !away.choices().host_embedding)) continue;
      away.choices().host_checkpoints = checkpoints;
      away.choices().host_embedding = embedding;
      if (!away.Fits()) continue;
      KeepMost(most, &away);
      if (found && Cost(away.plan()) >= Cost(best.plan())) continue;
      best = std::move(away);
      found = true;
    }
  }
  CacheMost(most, &best);
  return best.plan();
}

// Host memory is what this is short of last: there as many layers as fit keep attention's output, and what the smallest
// plan had put there comes back while it fits.
MemoryPlan FastestGrouped(Chooser chooser, int64_t most) {
  chooser.Fits();
  ChooseTiles(&chooser);
  chooser.choices().host_attention = true;
  chooser.Most(&PlanChoices::keep_attention_layers, most);
  if (chooser.choices().keep_attention_layers == 0) chooser.choices().host_attention = false;
  for (bool PlanChoices::*away : {&PlanChoices::host_optimizer, &PlanChoices::host_head, &PlanChoices::host_embedding,
                                  &PlanChoices::host_checkpoints}) {
    Chooser back = chooser;
    back.choices().*away = false;
    if (back.Fits()) chooser = std::move(back);
  }
  CacheMost(most, &chooser);
  return chooser.plan();
}

}  // namespace

MemoryPlan MakeCudaPlan(const ModelShape& shape, const TrainShape& train, const DeviceFacts& facts,
                        const PlanBudget& budget) {
  const int64_t device_bytes = AvailableDeviceBytes(facts, budget);
  const int64_t host_bytes = budget.host_bytes > 0 ? budget.host_bytes : facts.host_bytes;
  const int64_t most = budget.share == PlanShare::kWhole ? shape.layers : shape.layers / 2;
  const PackedAttention packed = MinimumCudaPlan(shape, train, facts).choices.packed_attention;
  const MemoryPlan smallest = SmallestWhole(shape, train, facts, packed);
  Chooser whole(smallest, device_bytes, host_bytes);
  if (!CanGroupHeads(train)) return FastestWhole(std::move(whole), most);
  Chooser grouped(SmallestGrouped(smallest, facts), device_bytes, host_bytes);
  const bool whole_fits = whole.Fits(), grouped_fits = grouped.Fits();
  if (!grouped_fits) return FastestWhole(std::move(whole), most);
  if (!whole_fits) return FastestGrouped(std::move(grouped), most);
  MemoryPlan plan = FastestWhole(std::move(whole), most);
  MemoryPlan other = FastestGrouped(std::move(grouped), most);
  return Cost(other) < Cost(plan) ? other : plan;
}

}  // namespace longhaul
