#include "kernels/cuda/sdpa.h"

#include <utility>

#include "base/check.h"
#include "base/error.h"
#include "kernels/cuda/lazy_libraries.h"
#include "kernels/cuda/sdpa_graph.h"
#include "kernels/cuda/sdpa_kernels.h"
#include "kernels/cuda_error.h"

namespace longhaul::kernels::cuda {
namespace {

// Ragged queries aligned to the end of their keys, and statistics by rows.
constexpr size_t kOldestCudnn = 90700;

void CheckRuntime(cudaError_t error, const char* call) {
  if (error != cudaSuccess) throw CudaError("Sdpa", call, error, cudaGetErrorString(error));
}

CudaShortage ShortageOf(cudnnStatus_t status) {
  if (status == CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED) return CudaShortage::kHost;
  return status == CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED ? CudaShortage::kDevice : CudaShortage::kNone;
}

absl::Status Unavailable(const std::string& why) {
  return MakeError(absl::StatusCode::kUnavailable, "CUDNN_UNAVAILABLE",
                   "cuDNN " + why + "; install cuDNN 9.14 or newer for CUDA 13");
}

}  // namespace

absl::StatusOr<std::unique_ptr<Cudnn>> Cudnn::Create() {
  if (absl::Status status = LoadCudaLibraries(); !status.ok()) return status;
  const size_t version = cudnnGetVersion();
  if (version < kOldestCudnn) return Unavailable("is of version " + std::to_string(version) + ", too old");
  std::unique_ptr<Cudnn> created(new Cudnn);
  const cudnnStatus_t status = cudnnCreate(&created->handle_);
  if (ShortageOf(status) == CudaShortage::kHost) {
    return MakeError(absl::StatusCode::kResourceExhausted, "HOST_OOM",
                     std::string("cuDNN does not start: ") + cudnnGetErrorString(status));
  }
  if (status != CUDNN_STATUS_SUCCESS) return Unavailable(std::string("does not start: ") + cudnnGetErrorString(status));
  int device = 0, major = 0, minor = 0;
  CheckRuntime(cudaGetDevice(&device), "cudaGetDevice");
  CheckRuntime(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "cudaDeviceGetAttribute");
  CheckRuntime(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), "cudaDeviceGetAttribute");
  created->device_ = {.compute_capability = major * 10 + minor, .cudnn_version = static_cast<int>(version)};
  return created;
}

Cudnn::~Cudnn() {
  if (handle_ != nullptr) cudnnDestroy(handle_);
}

std::string Cudnn::version() const {
  const int v = device_.cudnn_version;
  return std::to_string(v / 10000) + "." + std::to_string(v / 100 % 100) + "." + std::to_string(v % 100);
}

void Cudnn::UseStream(cudaStream_t stream) {
  if (stream == stream_) return;
  const cudnnStatus_t status = cudnnSetStream(handle_, stream);
  if (status != CUDNN_STATUS_SUCCESS) {
    throw CudaError("Sdpa", "cudnnSetStream", status, cudnnGetErrorString(status), ShortageOf(status));
  }
  stream_ = stream;
}

// What cuDNN builds and computes wrongly for packed documents, tried with 9.14 on Hopper and no later version: dk and
// dv are NaN from column 128 on; a dq, dk or dv with another stride than q, k or v is wrong or ends the kernel.
static absl::Status CheckKnownFaults(const SdpaShape& shape, bool backward) {
  if (!backward || shape.layout != SdpaLayout::kRagged) return absl::OkStatus();
  const auto wrong = [](const std::string& where) {
    return MakeError(absl::StatusCode::kUnimplemented, "SDPA_UNSUPPORTED",
                     "cuDNN's backward of packed documents is wrong for " + where);
  };
  if (shape.head_dim > 128) return wrong("head_dim over 128, and this is " + std::to_string(shape.head_dim));
  if (shape.dq_stride != shape.q_stride || shape.dk_stride != shape.k_stride || shape.dv_stride != shape.v_stride) {
    return wrong("gradients with other strides than their operands, and this is " + SdpaKey(shape));
  }
  return absl::OkStatus();
}

struct SdpaPlan::Graphs {
  std::unique_ptr<SdpaGraph> forward;
  std::unique_ptr<SdpaGraph> backward;  // null: a plan for evaluation
};

SdpaPlan::~SdpaPlan() = default;

absl::StatusOr<std::unique_ptr<SdpaPlan>> SdpaPlan::Create(Cudnn* cudnn, const SdpaShape& shape,
                                                           const SdpaOptions& options) {
  if (absl::Status status = CheckSdpaShape(shape); !status.ok()) return status;
  LH_CHECK(!(options.only_reference && options.only_cudnn));
  std::unique_ptr<SdpaPlan> plan(new SdpaPlan);
  plan->shape_ = shape;
  plan->cudnn_ = cudnn;
  plan->has_backward_ = options.backward;
  plan->stats_are_rows_ = SdpaStatsAreRows(shape, cudnn->device());
  absl::Status refusal = CheckKnownFaults(shape, options.backward);
  if (!options.only_reference && refusal.ok()) {
    auto graphs = std::make_unique<Graphs>();
    auto forward = SdpaGraph::Build(*cudnn, shape, /*backward=*/false);
    refusal = forward.status();
    if (refusal.ok()) graphs->forward = *std::move(forward);
    if (refusal.ok() && options.backward) {
      auto backward = SdpaGraph::Build(*cudnn, shape, /*backward=*/true);
      refusal = backward.status();
      if (refusal.ok()) graphs->backward = *std::move(backward);
    }
    if (refusal.ok()) plan->graphs_ = std::move(graphs);
  }
  if (plan->graphs_ != nullptr) {
    const Graphs& graphs = *plan->graphs_;
    plan->forward_workspace_bytes_ = graphs.forward->workspace_bytes();
    plan->description_ = "cuDNN " + cudnn->version() + ", forward " + graphs.forward->name();
    if (graphs.backward != nullptr) {
      plan->backward_workspace_bytes_ = graphs.backward->workspace_bytes();
      plan->description_ += ", backward " + graphs.backward->name();
    }
    return plan;
  }
  if (options.only_cudnn) return refusal;
  plan->backward_workspace_bytes_ = options.backward ? SdpaReferenceWorkspaceBytes(shape, cudnn->device()) : 0;
  plan->description_ = "reference kernels, because " +
                       (options.only_reference ? std::string("they were asked for") : std::string(refusal.message()));
  return plan;
}

bool SdpaPlan::is_reference() const { return graphs_ == nullptr; }

void SdpaPlan::PrepareIndex(cudaStream_t stream, const int64_t* rows_q, const int64_t* rows_kv, void* index) const {
  LH_CHECK(shape_.layout == SdpaLayout::kRagged);
  LaunchSdpaIndex(stream, shape_, rows_q, rows_kv, index);
}

void SdpaPlan::Forward(cudaStream_t stream, const SdpaBuffers& buffers, void* workspace) const {
  if (graphs_ == nullptr) return LaunchSdpaForward(stream, shape_, stats_are_rows_, buffers);
  cudnn_->UseStream(stream);
  graphs_->forward->Execute(*cudnn_, buffers, workspace);
}

void SdpaPlan::Backward(cudaStream_t stream, const SdpaBuffers& buffers, void* workspace) const {
  LH_CHECK(has_backward_);
  if (graphs_ == nullptr) {
    return LaunchSdpaBackward(stream, shape_, stats_are_rows_, buffers, static_cast<float*>(workspace));
  }
  cudnn_->UseStream(stream);
  graphs_->backward->Execute(*cudnn_, buffers, workspace);
}

}  // namespace longhaul::kernels::cuda
