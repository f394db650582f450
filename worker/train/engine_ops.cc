#include "worker/train/engine_ops.h"

#include "base/status_macros.h"
#include "worker/train/cpu_ops.h"
#include "worker/train/cuda_ops.h"

namespace longhaul::train {

absl::StatusOr<std::unique_ptr<EngineOps>> CreateOps(const EngineMemory& memory, const kernels::Exec& exec,
                                                     const ModelWeights& weights, const Adapter& adapter,
                                                     double lora_scale) {
  if (memory.plan().device == DeviceKind::kCpu) return std::make_unique<CpuOps>(memory, exec, weights, lora_scale);
  LH_ASSIGN_OR_RETURN(std::unique_ptr<CudaOps> ops, CudaOps::Create(memory, weights, adapter, lora_scale));
  ops->AdapterChanged();
  return ops;
}

}  // namespace longhaul::train
