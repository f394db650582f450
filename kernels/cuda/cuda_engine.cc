#include "kernels/cuda/cuda_engine.h"

#include <algorithm>
#include <map>
#include <memory>
#include <optional>
#include <type_traits>
#include <utility>

#include "base/check.h"
#include "base/error.h"
#include "base/failpoints.h"
#include "base/status_macros.h"
#include "kernels/cuda/cuda_exec.h"
#include "kernels/cuda/cut_cross_entropy.h"
#include "kernels/cuda/engine_attention.h"
#include "kernels/cuda/engine_groups.h"
#include "kernels/cuda/engine_linears.h"
#include "kernels/cuda/stream_profile.h"

namespace longhaul::kernels {
namespace cuda {
namespace {

struct GraphDestroyer {
  void operator()(cudaGraph_t graph) const { cudaGraphDestroy(graph); }
  void operator()(cudaGraphExec_t graph) const { cudaGraphExecDestroy(graph); }
};
template <typename T>
using Owned = std::unique_ptr<std::remove_pointer_t<T>, GraphDestroyer>;

class CapturedGraph final : public CudaGraph {
 public:
  CapturedGraph(const CudaStream& stream, const Owned<cudaGraph_t>& graph) : stream_(stream) {
    cudaGraphExec_t executable = nullptr;
    CheckCuda(cudaGraphInstantiate(&executable, graph.get(), 0), "CudaGraph", "cudaGraphInstantiate");
    executable_.reset(executable);
    CheckCuda(cudaGraphUpload(executable, stream_.get()), "CudaGraph", "cudaGraphUpload");
  }
  void Launch() override {
    CheckCuda(cudaGraphLaunch(executable_.get(), stream_.get()), "CudaGraph", "cudaGraphLaunch");
  }

 private:
  const CudaStream& stream_;
  Owned<cudaGraphExec_t> executable_;
};

// On the thread that the driver calls host functions on: what comes after in the stream waits for them.
void CUDART_CB OutFailpoint(void*) {
  Failpoint("cuda_copy_out").IgnoreError();  // armed to sleep or to crash
}
void CUDART_CB InFailpoint(void*) {
  Failpoint("cuda_copy_in").IgnoreError();  // this, too
}

class Engine final : public CudaEngine {
 public:
  Engine(const Exec& exec, const CudaEngineMemory& memory, const CudaEngineShapes& shapes, const void* head,
         std::unique_ptr<LtGemm> gemm)
      : exec_(exec),
        memory_(memory),
        loss_shape_(shapes.loss),
        head_(head),
        gemm_(std::move(gemm)),
        profile_(exec.cuda().compute) {}

  absl::Status Init(const CudaEngineShapes& shapes, std::vector<CudaLinear> linears) {
    if (shapes.fp8) LH_RETURN_IF_ERROR(CheckFp8());
    linears_ = std::make_unique<EngineLinears>(exec_, gemm_.get(), &profile_, memory_, std::move(linears), shapes.fp8);
    LH_ASSIGN_OR_RETURN(attention_, EngineAttention::Create(exec_, &profile_, memory_, shapes));
    if (memory_.attention_weight.data != nullptr) {
      groups_ = std::make_unique<EngineGroups>(exec_, gemm_.get(), &profile_, memory_, shapes, linears_.get());
    }
    return Loss(loss_shape_.rows).status();
  }

  void PlaceAdapters() override { linears_->PlaceAdapters(); }
  void SetDropout(double probability, uint64_t key) override { linears_->SetDropout(probability, key); }
  void Forward(size_t linear, const Tensor& x, int64_t first_row, const Tensor& residual, const Tensor& y,
               const Tensor& u) override {
    linears_->Forward(linear, x, first_row, residual, y, u);
  }
  void Input(size_t linear, const Tensor& x, int64_t first_row, const Tensor& u) override {
    linears_->Input(linear, x, first_row, u);
  }
  void BackwardInput(size_t linear, const Tensor& dy, int64_t first_row, const Tensor& dx) override {
    linears_->BackwardInput(linear, dy, first_row, dx);
  }
  void Gradients(size_t linear, const Tensor& dy, const Tensor& x, int64_t first_row, const Tensor& u) override {
    linears_->Gradients(linear, dy, x, first_row, u);
  }

  void BeginBatch(const int64_t* offsets, int64_t documents) override { attention_->BeginBatch(offsets, documents); }
  int64_t batch_form() const override { return attention_->batch_form(); }
  void AttentionForward(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& o,
                        const Tensor& lse) override {
    if (!plans_) attention_->Forward(q, k, v, o, lse);
  }
  void AttentionBackward(const Tensor& d_o, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& o,
                         const Tensor& lse, const Tensor& dq, const Tensor& dk, const Tensor& dv) override {
    if (!plans_) attention_->Backward(d_o, q, k, v, o, lse, dq, dk, dv);
  }

  void BeginGroup(size_t qkv, int64_t group) override { groups_->Begin(qkv, group); }
  void ForwardGroup(size_t qkv, const Tensor& x, const Tensor& u, bool has_u, const Tensor& y) override {
    groups_->Forward(qkv, x, u, has_u, y);
  }
  void BeginOutputGradient(size_t o) override { groups_->BeginOutputGradient(o); }
  void OutputGradient(size_t o, const Tensor& dy, int64_t first, const Tensor& d_o) override {
    groups_->OutputGradient(o, dy, first, d_o);
  }
  void CallForward(int64_t call, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& o,
                   const Tensor& lse) override {
    if (!plans_) attention_->CallForward(call, q, k, v, o, lse);
  }
  void CallBackward(int64_t call, const Tensor& d_o, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& o,
                    const Tensor& lse, const Tensor& dq, const Tensor& dk, const Tensor& dv) override {
    if (!plans_) attention_->CallBackward(call, d_o, q, k, v, o, lse, dq, dk, dv);
  }

  void HeadLoss(const Tensor& hidden, const int32_t* labels, const double* grad_scale, LossTotals* totals,
                const Tensor& d_hidden) override {
    LH_CHECK(hidden.stride == loss_shape_.hidden_stride && hidden.cols == loss_shape_.hidden);
    LH_CHECK(hidden.dtype == DType::kBF16);
    LH_CHECK(grad_scale == nullptr ||
             (d_hidden.stride == loss_shape_.d_hidden_stride && d_hidden.cols == loss_shape_.hidden &&
              d_hidden.rows == hidden.rows && d_hidden.dtype == DType::kF32));
    const auto loss = Loss(hidden.rows);
    if (plans_) return loss_error_.Update(loss.status());
    if (!loss.ok()) throw CudaError("HeadLoss", "Plan", 0, std::string(loss.status().message()));
    const StreamProfile::Scope scope(&profile_, "loss");
    CceOperands operands;
    operands.hidden = hidden.data;
    operands.head = head_;
    operands.labels = labels;
    operands.grad_scale = grad_scale;
    operands.totals = totals;
    operands.d_hidden = grad_scale != nullptr ? d_hidden.as<float>() : nullptr;
    (*loss)->Run(exec_, operands, memory_.loss.data);
  }

  void CopyOut(size_t number, void* host, const void* device, int64_t bytes) override {
    if (plans_) return;
    BeginCopy(exec_.cuda().copy_out, "cuda_copy_out", OutFailpoint);
    CopyBeside(exec_.cuda().copy_out, number, host, device, bytes, cudaMemcpyDeviceToHost);
  }
  void CopyIn(size_t number, void* device, const void* host, int64_t bytes) override {
    if (plans_) return;
    BeginCopy(exec_.cuda().copy_in, "cuda_copy_in", InFailpoint);
    CopyBeside(exec_.cuda().copy_in, number, device, host, bytes, cudaMemcpyHostToDevice);
  }
  void WaitForCopy(size_t number) override {
    if (!plans_) copied_.at(number).Block(exec_.cuda().compute);
  }

  void BeginPlanning() override {
    plans_ = true;
    loss_error_ = absl::OkStatus();
    gemm_->BeginPlanning();
  }
  absl::Status EndPlanning() override {
    plans_ = false;
    planned_shapes_ = gemm_->planned_shapes();
    absl::Status error = gemm_->EndPlanning();
    error.Update(loss_error_);
    return error;
  }
  int64_t chosen_late() const override { return gemm_->planned_shapes() - planned_shapes_; }

  CudaCapture Capture(const std::function<void()>& body, int64_t most_nodes) override {
    LH_CHECK(!profile_.is_on());
    const cudaStream_t stream = exec_.cuda().compute.get();
    CheckCuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "Capture", "cudaStreamBeginCapture");
    cudaGraph_t captured = nullptr;
    try {
      body();
    } catch (...) {
      // The stream must not stay in capture; the first error is the one to tell.
      cudaStreamEndCapture(stream, &captured);
      const Owned<cudaGraph_t> dropped(captured);
      throw;
    }
    CheckCuda(cudaStreamEndCapture(stream, &captured), "Capture", "cudaStreamEndCapture");
    const Owned<cudaGraph_t> graph(captured);
    size_t nodes = 0;
    CheckCuda(cudaGraphGetNodes(captured, nullptr, &nodes), "Capture", "cudaGraphGetNodes");
    CudaCapture capture;
    capture.nodes = static_cast<int64_t>(nodes);
    if (capture.nodes <= most_nodes) capture.graph = std::make_unique<CapturedGraph>(exec_.cuda().compute, graph);
    return capture;
  }

  void Mark(size_t point) override { profile_.Mark(point); }
  double SecondsBetween(size_t from, size_t to) override { return profile_.SecondsBetween(from, to); }
  void WaitFor(size_t point) override { profile_.WaitFor(point); }
  void BeginProfile() override { profile_.Begin(); }
  bool is_profiling() const override { return profile_.is_on(); }
  void BeginPart(const char* part) override { part_.emplace(&profile_, part); }
  void EndPart() override { part_.reset(); }
  std::vector<Part> EndProfile() override { return profile_.End(); }

  std::string Describe() const override {
    return exec_.cuda().facts.name + ", cuBLASLt " + LtGemm::LibraryVersion() + ", " + attention_->Describe();
  }

 private:
  absl::Status CheckFp8() {
    const auto scale = gemm_->BestFp8Scale();
    if (scale.ok() && *scale == GemmScale::kRow) return absl::OkStatus();
    return MakeError(absl::StatusCode::kUnimplemented, "DEVICE_UNSUPPORTED",
                     "compute type fp8: cuBLASLt " + LtGemm::LibraryVersion() +
                         " has no FP8 product with a scale a row on " + exec_.cuda().facts.name + "; use bf16");
  }

  // For calls of `rows` rows: products are chosen at the first.
  absl::StatusOr<const CutCrossEntropy*> Loss(int64_t rows) {
    std::unique_ptr<CutCrossEntropy>& loss = losses_[rows];
    if (loss != nullptr) return loss.get();
    CceShape shape = loss_shape_;
    shape.rows = rows;
    LH_ASSIGN_OR_RETURN(loss, CutCrossEntropy::Create(gemm_.get(), shape));
    if (loss->workspace_bytes() <= memory_.loss.bytes) return loss.get();
    return MakeError(absl::StatusCode::kFailedPrecondition, "PLAN_MISMATCH",
                     "the loss takes " + std::to_string(loss->workspace_bytes()) + " bytes of workspace, planned are " +
                         std::to_string(memory_.loss.bytes));
  }

  // What is queued on `stream` from here on begins when the ops so far are done.
  void BeginCopy(const CudaStream& stream, const char* failpoint, cudaHostFn_t reach_failpoint) {
    queued_.Record(exec_.cuda().compute);
    queued_.Block(stream);
    if (!FailpointIsArmed(failpoint)) return;
    CheckCuda(cudaLaunchHostFunc(stream.get(), reach_failpoint, nullptr), "Copy", "cudaLaunchHostFunc");
  }

  void CopyBeside(const CudaStream& stream, size_t number, void* to, const void* from, int64_t bytes,
                  cudaMemcpyKind kind) {
    const StreamProfile::Scope scope(&profile_, "copies beside", &stream);
    CheckCuda(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), kind, stream.get()), "Copy", "cudaMemcpyAsync");
    copied_[number].Record(stream);
  }

  const Exec& exec_;
  CudaEngineMemory memory_;
  CceShape loss_shape_;
  const void* head_;
  std::unique_ptr<LtGemm> gemm_;
  StreamProfile profile_;
  std::optional<StreamProfile::Scope> part_;
  std::unique_ptr<EngineLinears> linears_;
  std::unique_ptr<EngineAttention> attention_;
  std::unique_ptr<EngineGroups> groups_;                        // null: no heads in groups
  std::map<int64_t, std::unique_ptr<CutCrossEntropy>> losses_;  // by rows
  CudaEvent queued_;                                            // the ops before a copy
  std::map<size_t, CudaEvent> copied_;                          // by number
  bool plans_ = false;
  absl::Status loss_error_;  // while it does
  int64_t planned_shapes_ = 0;
};

}  // namespace
}  // namespace cuda

absl::StatusOr<std::unique_ptr<CudaEngine>> CudaEngine::Create(const Exec& exec, const CudaEngineMemory& memory,
                                                               const CudaEngineShapes& shapes,
                                                               std::vector<CudaLinear> linears, const void* head) {
  LH_CHECK(exec.backend() == Backend::kCuda);
  LH_ASSIGN_OR_RETURN(auto gemm, cuda::LtGemm::Create(memory.gemm.bytes));
  auto engine = std::make_unique<cuda::Engine>(exec, memory, shapes, head, std::move(gemm));
  LH_RETURN_IF_ERROR(engine->Init(shapes, std::move(linears)));
  return engine;
}

int64_t CudaUsedBytes(const Exec& exec) {
  LH_CHECK(exec.backend() == Backend::kCuda);
  size_t free_bytes = 0, total_bytes = 0;
  CheckCuda(cudaMemGetInfo(&free_bytes, &total_bytes), "CudaUsedBytes", "cudaMemGetInfo");
  return static_cast<int64_t>(total_bytes - free_bytes);
}

int64_t CudaOwnBytes(const Exec& exec) { return std::max<int64_t>(0, CudaUsedBytes(exec) - exec.cuda().others_bytes); }

}  // namespace longhaul::kernels
