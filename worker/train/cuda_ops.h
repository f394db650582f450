// EngineOps on CUDA: kernels/cuda/cuda_engine.h over the plan's regions.
#pragma once

#include <cstdint>
#include <memory>

#include "kernels/cuda/cuda_engine.h"
#include "model/cuda_layout.h"
#include "worker/train/cuda_groups.h"
#include "worker/train/engine_ops.h"
#include "worker/train/graph_cache.h"

namespace longhaul::train {

class CudaOps final : public EngineOps {
 public:
  // Errors of CudaEngine::Create.
  static absl::StatusOr<std::unique_ptr<CudaOps>> Create(const EngineMemory& memory, const ModelWeights& weights,
                                                         const Adapter& adapter, double lora_scale);

  void SetDropout(double probability, uint64_t key) override;
  TokenBatch Bring(const TokenBatch& batch) override;
  int64_t batch_slot() const override { return batch_slot_; }
  bool Queue(Part part, int64_t rows, absl::FunctionRef<bool()> body) override;
  void BeginRehearsal() override;
  absl::Status EndRehearsal() override;
  void AdapterChanged() override;
  void BeginStep(int64_t number) override { engine_->Mark(StepBegun(number)); }
  void EndStep(int64_t number) override { engine_->Mark(StepEnded(number)); }
  void WaitForStep(int64_t number) override { engine_->WaitFor(StepEnded(number)); }
  double SecondsSinceStepBefore(int64_t number) override {
    return engine_->SecondsBetween(StepEnded(number - 1), StepEnded(number));
  }
  void BeginPart(const char* part) override { engine_->BeginPart(part); }
  void EndPart() override { engine_->EndPart(); }
  void BeginStream(int64_t l, bool written) override;
  void StreamWritten(int64_t l) override;
  void Forward(const QloraLinear& linear, const kernels::Tensor& x, int64_t first_row, const kernels::Tensor& residual,
               const kernels::Tensor& y, const kernels::Tensor& u) override;
  void Input(const QloraLinear& linear, const kernels::Tensor& x, int64_t first_row, const kernels::Tensor& u) override;
  void BackwardInput(const QloraLinear& linear, const kernels::Tensor& dy, int64_t first_row,
                     const kernels::Tensor& dx) override;
  void Gradients(const QloraLinear& linear, const kernels::Tensor& dy, const kernels::Tensor& x, int64_t first_row,
                 const kernels::Tensor& u) override;
  void AttentionForward(const kernels::Tensor& q, const kernels::Tensor& k, const kernels::Tensor& v,
                        const kernels::Tensor& o, const kernels::Tensor& lse) override;
  void AttentionBackward(const kernels::Tensor& d_o, const kernels::Tensor& q, const kernels::Tensor& k,
                         const kernels::Tensor& v, const kernels::Tensor& o, const kernels::Tensor& lse,
                         const kernels::Tensor& dq, const kernels::Tensor& dk, const kernels::Tensor& dv) override;
  GroupedOps* grouped() override { return groups_.get(); }
  void BringHead() override;
  void HeadLoss(const kernels::Tensor& hidden, const int32_t* labels, const double* grad_scale,
                kernels::LossTotals* totals, const kernels::Tensor& d_hidden) override;
  std::string Describe() const override { return engine_->Describe(); }

  kernels::CudaEngine& engine() const { return *engine_; }
  const GraphCache& graphs() const { return *graphs_; }
  // Other limits than kMaxCudaGraphNodes and kCudaGraphStaleUses, for graphs that are captured from now on.
  void LimitGraphNodes(int64_t most) { graphs_->LimitNodes(most); }
  void LimitGraphStaleUses(int64_t uses) { graphs_->LimitStaleUses(uses); }
  // Points of the stream (CudaEngine::Mark).
  static size_t StepBegun(int64_t number) { return static_cast<size_t>(number % kMarkedSteps); }
  static size_t StepEnded(int64_t number) { return static_cast<size_t>(kMarkedSteps + number % kMarkedSteps); }

 private:
  explicit CudaOps(const EngineMemory& memory) : memory_(memory) {}
  bool RunOrReplay(const GraphCache::Key& key, absl::FunctionRef<bool()> body);
  // What was to be uploaded from a slot has left it.
  static size_t BatchCopied(int64_t slot) { return static_cast<size_t>(2 * kMarkedSteps + slot); }
  // One is queued, one runs, one ended before it.
  static constexpr int64_t kMarkedSteps = 3;

  const EngineMemory& memory_;
  std::unique_ptr<kernels::CudaEngine> engine_;
  std::unique_ptr<CudaGroups> groups_;  // null: no heads in groups
  // Whether x_l has to leave: the last ones are still in their slots when the backward pass comes.
  bool Leaves(int64_t l) const;
  void* StreamOnDevice(int64_t l) const;
  void* StreamOnHost(int64_t l) const;

  std::unique_ptr<GraphCache> graphs_;
  bool rehearses_ = false;
  // Batches, filled up, in pinned memory: [kStepSlots][rows], [kStepSlots][documents + 1].
  int32_t* host_ids_ = nullptr;
  int32_t* host_positions_ = nullptr;
  int64_t* host_offsets_ = nullptr;
  int64_t batch_slot_ = 0;
  int32_t* device_ids_ = nullptr;
  int32_t* device_positions_ = nullptr;
  double dropout_ = 0;
};

}  // namespace longhaul::train
