#include "worker/train/memory.h"

#include <utility>
#include <vector>

#include "base/error.h"
#include "base/status_macros.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/ops.h"
#include "model/cuda_layout.h"
#include "model/plan_layout.h"

namespace longhaul::train {
namespace {

absl::Status Mismatch(const std::string& what) {
  return MakeError(absl::StatusCode::kFailedPrecondition, "PLAN_MISMATCH",
                   "the memory plan is not for this machine: " + what);
}

// The plan's formulas must cover what the library really asks for; found out before the first step, not in it.
absl::Status CheckPackedSizes(const MemoryPlan& plan, const kernels::Exec& exec) {
  const auto check = [&](int64_t out, int64_t in) -> absl::Status {
    const FrozenBytes planned = FrozenWeightBytes(plan.train, true, out, in, PlanKind::kTrain);
    for (bool backward : {false, true}) {
      const int64_t needed = kernels::PackedWeightBytes(exec, out, in, backward);
      if (needed <= 0 || needed > (backward ? planned.backward : planned.forward)) {
        return Mismatch("a packed weight of " + std::to_string(out) + " x " + std::to_string(in) + " takes " +
                        std::to_string(needed) + " bytes, planned are " + std::to_string(planned.forward));
      }
    }
    return absl::OkStatus();
  };
  for (int i = 0; i < kFusedLinears; ++i) {
    const FusedLinear linear = static_cast<FusedLinear>(i);
    LH_RETURN_IF_ERROR(check(FusedOut(plan.shape, linear), FusedIn(plan.shape, linear)));
  }
  return check(plan.shape.vocab, plan.shape.hidden);
}

absl::Status CheckScratch(const MemoryPlan& plan) {
  const ModelShape& s = plan.shape;
  const kernels::GemmType type =
      plan.train.compute == ComputeType::kBF16 ? kernels::GemmType::kBF16 : kernels::GemmType::kF32;
  const int64_t rows = plan.choices.loss_tile_rows;
  if (kernels::FrozenGemmScratchBytes(type, rows, s.vocab, s.hidden) >
      PlanGemmScratchBytes(plan.train, rows, s.vocab, s.hidden)) {
    return Mismatch("the GEMM scratch is larger than planned");
  }
  for (bool backward : {false, true}) {
    const int64_t needed = kernels::AttentionScratchBytes(ComputeDType(plan), plan.choices.cpu_threads, s.heads,
                                                          s.kv_heads, s.head_dim, plan.train.longest(), backward);
    if (needed > PlanAttentionScratchBytes(s, plan.train, plan.choices.cpu_threads, backward)) {
      return Mismatch("the attention scratch is larger than planned");
    }
  }
  return absl::OkStatus();
}

}  // namespace

namespace {

absl::StatusOr<std::unique_ptr<kernels::Exec>> CreateCudaExec(const MemoryPlan& plan, int device) {
  LH_ASSIGN_OR_RETURN(std::unique_ptr<kernels::Exec> exec, kernels::Exec::CreateCuda(device));
  LH_ASSIGN_OR_RETURN(const std::vector<kernels::CudaDeviceFacts> devices, kernels::CudaDevices());
  const int capability = devices.at(static_cast<size_t>(device)).compute_capability;
  if (capability != ComputeCapabilityOf(plan.choices.isa)) {
    return Mismatch("it is for " + plan.choices.isa + ", this device is sm_" + std::to_string(capability));
  }
  return exec;
}

}  // namespace

kernels::DType ComputeDType(const MemoryPlan& plan) {
  if (plan.device == DeviceKind::kCuda) return kernels::DType::kBF16;
  return plan.train.compute == ComputeType::kF64 ? kernels::DType::kF64 : kernels::DType::kF32;
}

absl::StatusOr<std::unique_ptr<kernels::Exec>> CreateExec(const MemoryPlan& plan, bool pin_threads, int device) {
  if (plan.device == DeviceKind::kCuda) return CreateCudaExec(plan, device);
  const kernels::CpuFacts facts = kernels::ProbeCpu();
  const bool packs = plan.choices.packed_weights;
  if (packs && !facts.packs_weights)
    return Mismatch("its weights are packed, but the GEMM library here keeps them plain");
  if (facts.isa != plan.choices.isa) return Mismatch("it is for " + plan.choices.isa + ", this CPU has " + facts.isa);
  LH_ASSIGN_OR_RETURN(
      std::unique_ptr<kernels::Exec> exec,
      kernels::Exec::CreateCpu(
          plan.choices.cpu_threads,
          plan.train.compute == ComputeType::kBF16 ? kernels::GemmType::kBF16 : kernels::GemmType::kF32, pin_threads));
  if (packs) LH_RETURN_IF_ERROR(CheckPackedSizes(plan, *exec));
  LH_RETURN_IF_ERROR(CheckScratch(plan));
  return exec;
}

absl::StatusOr<std::unique_ptr<EngineMemory>> EngineMemory::Create(const MemoryPlan& plan, const kernels::Exec& exec) {
  std::vector<kernels::ArenaRegion> host, device;
  for (const PlanRegion& region : plan.regions) {
    (region.space == PlanSpace::kDevice ? device : host).push_back({region.name, region.offset_bytes, region.bytes});
  }
  std::unique_ptr<EngineMemory> memory(new EngineMemory(plan, exec));
  if (plan.device == DeviceKind::kCpu) {
    LH_ASSIGN_OR_RETURN(memory->host_, kernels::Arena::CreateHost(plan.arena_bytes, std::move(host)));
    return memory;
  }
  LH_ASSIGN_OR_RETURN(memory->device_, kernels::CreateDeviceArena(exec, plan.device_arena_bytes, std::move(device)));
  LH_ASSIGN_OR_RETURN(memory->host_,
                      kernels::CreatePinnedArena(exec, plan.arena_bytes, std::move(host), plan.choices.cpu_threads));
  return memory;
}

}  // namespace longhaul::train
