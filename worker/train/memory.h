// The engine's memory: exactly what the plan says, allocated once, carved by name.
// Not thread-safe.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "kernels/arena.h"
#include "kernels/exec.h"
#include "kernels/tensor.h"
#include "model/memory_plan.h"

namespace longhaul::train {

// Of activations. kF64 for the oracle; on CUDA bf16; f32 otherwise (on a CPU bf16 is the type that frozen GEMMs
// multiply in, not of the activations).
kernels::DType ComputeDType(const MemoryPlan& plan);

// An Exec with the plan's threads and GEMM type, or on CUDA device `device`. FAILED_PRECONDITION, reason PLAN_MISMATCH,
// where this CPU or device is not the one that the plan was made for, or the kernels need more scratch than its
// formulas say; Exec::CreateCuda's errors.
absl::StatusOr<std::unique_ptr<kernels::Exec>> CreateExec(const MemoryPlan& plan, bool pin_threads, int device = 0);

class EngineMemory {
 public:
  // RESOURCE_EXHAUSTED, reason HOST_OOM or DEVICE_OOM, where an arena cannot be had; UNAVAILABLE DEVICE_MEMORY_TAKEN
  // where other programs have it. `exec` is of the plan's device and outlives the memory.
  static absl::StatusOr<std::unique_ptr<EngineMemory>> Create(const MemoryPlan& plan, const kernels::Exec& exec);

  const MemoryPlan& plan() const { return plan_; }
  const kernels::Exec& exec() const { return exec_; }
  // Host memory; pinned on CUDA.
  const kernels::Arena& arena() const { return *host_; }
  // The arena of a region.
  const kernels::Arena& Home(const std::string& region) const {
    return device_ != nullptr && device_->Has(region) ? *device_ : *host_;
  }
  kernels::DType dtype() const { return ComputeDType(plan_); }
  // Of statistics, norms, RoPE's tables and the adapter.
  kernels::DType stat_dtype() const { return kernels::StatType(dtype()); }
  bool Has(const std::string& region) const { return Home(region).Has(region); }
  // The region as [rows, cols] of the compute type, at a byte offset.
  kernels::Tensor Matrix(const std::string& region, int64_t rows, int64_t cols, int64_t offset_bytes = 0) const {
    return Home(region).Matrix(region, dtype(), rows, cols, offset_bytes);
  }
  kernels::Tensor StatMatrix(const std::string& region, int64_t rows, int64_t cols, int64_t offset_bytes = 0) const {
    return Home(region).Matrix(region, stat_dtype(), rows, cols, offset_bytes);
  }
  int32_t* Int32s(const std::string& region, int64_t count) const {
    return Home(region).Matrix(region, kernels::DType::kI32, 1, count).as<int32_t>();
  }
  // Null where the plan has no such region (scratch that this plan does not need).
  void* GetOrNull(const std::string& region) const { return Has(region) ? Home(region).Get(region) : nullptr; }
  int64_t BytesOrZero(const std::string& region) const { return Has(region) ? Home(region).RegionBytes(region) : 0; }

 private:
  EngineMemory(const MemoryPlan& plan, const kernels::Exec& exec) : plan_(plan), exec_(exec) {}
  MemoryPlan plan_;
  const kernels::Exec& exec_;
  std::unique_ptr<kernels::Arena> host_;
  std::unique_ptr<kernels::Arena> device_;  // null on a CPU device
};

}  // namespace longhaul::train
