#include "model/cuda_attention.h"

#include <algorithm>

#include "model/cost_model.h"
#include "model/cuda_layout.h"

namespace longhaul {
namespace {

constexpr int64_t kWidestPackedHead = 128;
constexpr int kHopper = 90;

// What the front end asks of the device and of cuDNN (its check of deterministic kernels on a Blackwell).
bool HasDeterministicKernels(int capability, int64_t cudnn_version) {
  return capability / 10 != 10 || cudnn_version >= kOldestDeterministicBlackwellCudnn;
}

// Calls that cut a group of heads have its key head each.
int64_t CallKvHeads(const MemoryPlan& plan) {
  return std::max<int64_t>(1, plan.shape.kv_heads / plan.choices.attention_calls);
}

}  // namespace

PackedAttention FastestPackedAttention(const ModelShape& shape, const TrainShape& train, const DeviceFacts& facts) {
  const int capability = ComputeCapabilityOf(facts.isa);
  if (shape.head_dim > kWidestPackedHead) return PackedAttention::kReference;
  if (train.deterministic) {
    const bool by_rows = kernels::cuda::SdpaStatsAreRows({.layout = kernels::cuda::SdpaLayout::kRagged},
                                                         {.compute_capability = capability});
    return by_rows && HasDeterministicKernels(capability, facts.cudnn_version) ? PackedAttention::kEach
                                                                               : PackedAttention::kReference;
  }
  const bool refused = capability < kHopper && facts.cudnn_version < kOldestRaggedCudnn;
  return refused ? PackedAttention::kReference : PackedAttention::kTogether;
}

bool HasDenseAttention(const MemoryPlan& plan) {
  const int capability = ComputeCapabilityOf(plan.choices.isa);
  bool has_kernels = plan.shape.head_dim <= kWidestPackedHead || capability / 10 == kHopper / 10;
  // On a Blackwell the choice for packs says whether cuDNN has deterministic kernels at all.
  if (plan.train.deterministic && capability / 10 == 10) {
    has_kernels = has_kernels && plan.choices.packed_attention != PackedAttention::kReference;
  }
  return has_kernels && plan.train.sequence_length % kCudaRowUnit == 0 &&
         plan.train.longest() == plan.train.sequence_length;
}

kernels::cuda::SdpaShape PlanDenseAttention(const MemoryPlan& plan) {
  const ModelShape& s = plan.shape;
  const int64_t calls = plan.choices.attention_calls;
  kernels::cuda::SdpaShape shape = kernels::cuda::DenseSdpa(plan.train.batch_size, plan.train.sequence_length,
                                                            s.heads / calls, CallKvHeads(plan), s.head_dim);
  if (!plan.choices.grouped_attention) {
    shape = kernels::cuda::WithOneQkvBuffer(shape, CudaStrides(plan).d_qkv);
    shape.d_o_stride = s.q_dim();
  }
  shape.o_stride = CudaField(plan, Act::kO).stride;
  shape.deterministic = plan.train.deterministic;
  return shape;
}

kernels::cuda::SdpaShape PlanPackedAttention(const MemoryPlan& plan) {
  const ModelShape& s = plan.shape;
  const int64_t calls = plan.choices.attention_calls;
  const int64_t n = PlannedRows(plan);
  const int64_t longest = std::min(n, RoundUp(plan.train.longest(), kCudaRowUnit));
  const int64_t documents = plan.choices.packed_attention == PackedAttention::kEach ? 1 : plan.choices.documents;
  kernels::cuda::SdpaShape shape =
      kernels::cuda::RaggedSdpa(documents, longest, n, s.heads / calls, CallKvHeads(plan), s.head_dim);
  // Keys, values and their gradients have rows of their own: the library's workspace costs by their stride.
  if (!plan.choices.grouped_attention) {
    shape.q_stride = shape.dq_stride = CudaStrides(plan).d_qkv;
    shape.d_o_stride = s.q_dim();
  }
  shape.o_stride = CudaField(plan, Act::kO).stride;
  shape.deterministic = plan.train.deterministic;
  return shape;
}

int64_t PlanAttentionIndexBytes(const MemoryPlan& plan) {
  const int64_t calls = plan.choices.packed_attention == PackedAttention::kEach ? plan.choices.documents : 1;
  return calls * kernels::cuda::SdpaIndexBytes(PlanPackedAttention(plan));
}

kernels::cuda::SdpaDevice PlanSdpaDevice(const MemoryPlan& plan) {
  return {.compute_capability = ComputeCapabilityOf(plan.choices.isa)};
}

std::string ReferenceAttentionWarning(const MemoryPlan& plan) {
  if (plan.device != DeviceKind::kCuda || plan.choices.packed_attention != PackedAttention::kReference) return "";
  const int times = std::max(1, static_cast<int>(ReferenceAttentionSlowdown(plan)));
  std::string text =
      "attention of packed documents, and of documents of different lengths, runs on Longhaul's own "
      "reference kernels, up to " +
      std::to_string(times) + " times slower than cuDNN's: ";
  const std::string on = " on " + plan.choices.isa;
  if (plan.shape.head_dim > kWidestPackedHead) {
    return text + "cuDNN's are wrong for a head_dim over 128, and this model's is " +
           std::to_string(plan.shape.head_dim) +
           (HasDenseAttention(plan) ? "; only sequences of one full length each go through it" : "");
  }
  if (!plan.train.deterministic) {
    return text + "cuDNN before 9.18.1 has none" + on + "; install a newer one and restart longhaul-worker";
  }
  if (ComputeCapabilityOf(plan.choices.isa) / 10 == 10) {
    return text + "cuDNN before 9.18.0 has no deterministic ones" + on +
           ", and the workspace of newer ones has to fit; install a newer one and restart longhaul-worker, or train "
           "without deterministic";
  }
  if (kernels::cuda::SdpaStatsAreRows(PlanPackedAttention(plan), PlanSdpaDevice(plan))) {
    return text +
           "the workspace of its deterministic kernels, two bytes a score, does not fit; train without "
           "deterministic, with shorter sequences, or where more device memory is free";
  }
  return text + "it has no deterministic ones" + on + "; train without deterministic";
}

}  // namespace longhaul
