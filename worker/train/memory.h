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

// kF64 for the oracle; f32 otherwise (bf16 is the type that frozen GEMMs multiply in, not of the activations).
kernels::DType ComputeDType(const MemoryPlan& plan);

// An Exec with the plan's threads and GEMM type. FAILED_PRECONDITION, reason PLAN_MISMATCH, where this CPU is not the
// one that the plan was made for, or the kernels need more scratch than its formulas say.
absl::StatusOr<std::unique_ptr<kernels::Exec>> CreateExec(const MemoryPlan& plan, bool pin_threads);

class EngineMemory {
 public:
  // RESOURCE_EXHAUSTED, reason HOST_OOM, where the arena cannot be mapped.
  static absl::StatusOr<std::unique_ptr<EngineMemory>> Create(const MemoryPlan& plan);

  const MemoryPlan& plan() const { return plan_; }
  const kernels::Arena& arena() const { return *arena_; }
  kernels::DType dtype() const { return ComputeDType(plan_); }
  bool Has(const std::string& region) const { return arena_->Has(region); }
  // The region as [rows, cols] of the compute type, at a byte offset.
  kernels::Tensor Matrix(const std::string& region, int64_t rows, int64_t cols, int64_t offset_bytes = 0) const {
    return arena_->Matrix(region, dtype(), rows, cols, offset_bytes);
  }
  // Null where the plan has no such region (scratch that this plan does not need).
  void* GetOrNull(const std::string& region) const { return Has(region) ? arena_->Get(region) : nullptr; }

 private:
  EngineMemory(const MemoryPlan& plan, std::unique_ptr<kernels::Arena> arena) : plan_(plan), arena_(std::move(arena)) {}
  MemoryPlan plan_;
  std::unique_ptr<kernels::Arena> arena_;
};

}  // namespace longhaul::train
