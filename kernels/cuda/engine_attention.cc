#include "kernels/cuda/engine_attention.h"

#include <algorithm>

#include "base/check.h"
#include "base/error.h"
#include "base/status_macros.h"
#include "kernels/cuda/cuda_exec.h"

namespace longhaul::kernels::cuda {

namespace {

// The kernels that the memory plan counts on, or none: it was made with another library in mind, and what would stand
// in is hundreds of times slower.
absl::StatusOr<std::unique_ptr<SdpaPlan>> AsPlanned(Cudnn* cudnn, const SdpaShape& shape, bool reference) {
  auto plan = SdpaPlan::Create(cudnn, shape, {.only_reference = reference, .only_cudnn = !reference});
  if (ErrorReason(plan.status()) != "SDPA_UNSUPPORTED") return plan;
  return MakeError(absl::StatusCode::kFailedPrecondition, "PLAN_MISMATCH",
                   "the memory plan counts on attention by cuDNN, and cuDNN " + cudnn->version() +
                       " on compute capability " + std::to_string(cudnn->device().compute_capability / 10) + "." +
                       std::to_string(cudnn->device().compute_capability % 10) +
                       " refuses: " + std::string(plan.status().message()) +
                       ". Install cuDNN 9.18.1 or newer and restart longhaul-worker, so that plans are made for it");
}

}  // namespace

absl::StatusOr<std::unique_ptr<EngineAttention>> EngineAttention::Create(const Exec& exec, StreamProfile* profile,
                                                                         const CudaEngineMemory& memory,
                                                                         const CudaEngineShapes& shapes) {
  std::unique_ptr<EngineAttention> created(new EngineAttention(exec, profile, memory));
  created->calls_ = shapes.attention_calls;
  LH_ASSIGN_OR_RETURN(created->cudnn_, Cudnn::Create());
  created->documents_ = std::max(shapes.documents, shapes.packed.batch);
  LH_ASSIGN_OR_RETURN(created->packed_, AsPlanned(created->cudnn_.get(), shapes.packed, shapes.packed_by_reference));
  LH_RETURN_IF_ERROR(created->CheckWorkspace(*created->packed_));
  if (created->IndexBytes() > memory.attention_index.bytes) {
    return MakeError(absl::StatusCode::kFailedPrecondition, "PLAN_MISMATCH",
                     "attention's index takes " + std::to_string(created->IndexBytes()) + " bytes, planned are " +
                         std::to_string(memory.attention_index.bytes));
  }
  if (shapes.dense.has_value()) {
    LH_ASSIGN_OR_RETURN(created->dense_, AsPlanned(created->cudnn_.get(), *shapes.dense, /*reference=*/false));
    LH_RETURN_IF_ERROR(created->CheckWorkspace(*created->dense_));
  }
  return created;
}

absl::Status EngineAttention::CheckWorkspace(const SdpaPlan& plan) const {
  if (plan.forward_workspace_bytes() <= memory_.attention_forward.bytes &&
      plan.backward_workspace_bytes() <= memory_.attention_backward.bytes) {
    return absl::OkStatus();
  }
  return MakeError(absl::StatusCode::kFailedPrecondition, "PLAN_MISMATCH",
                   "attention (" + plan.description() + ") takes " + std::to_string(plan.forward_workspace_bytes()) +
                       " and " + std::to_string(plan.backward_workspace_bytes()) + " bytes of workspace, planned are " +
                       std::to_string(memory_.attention_forward.bytes) + " and " +
                       std::to_string(memory_.attention_backward.bytes));
}

void EngineAttention::BeginBatch(const int64_t* offsets, int64_t documents) {
  is_dense_ = dense_ != nullptr && documents == dense_->shape().batch;
  for (int64_t d = 0; is_dense_ && d < documents; ++d) {
    is_dense_ = offsets[d + 1] - offsets[d] == dense_->shape().max_q;
  }
  if (is_dense_) return;
  LH_CHECK(documents <= documents_, std::to_string(documents) + " documents");
  LH_CHECK(offsets[documents_] == offsets[documents]);
  const int64_t bytes = (documents_ + 1) * static_cast<int64_t>(sizeof(int64_t));
  LH_CHECK(bytes <= memory_.document_offsets.bytes);
  exec_.Upload(memory_.document_offsets.data, offsets, bytes);
  const auto* const on_device = static_cast<const int64_t*>(memory_.document_offsets.data);
  parts_ = 0;
  for (int64_t first = 0; first < documents_; first += packed_->shape().batch) {
    if (offsets[first] == offsets[first + packed_->shape().batch]) continue;
    packed_->PrepareIndex(exec_.cuda().compute.get(), on_device + first, on_device + first, Index(parts_++));
  }
}

int64_t EngineAttention::IndexBytes() const {
  return documents_ / packed_->shape().batch * SdpaIndexBytes(packed_->shape());
}

void* EngineAttention::Index(int64_t part) const {
  return static_cast<char*>(memory_.attention_index.data) + part * SdpaIndexBytes(packed_->shape());
}

Tensor EngineAttention::Part(const Tensor& all, int64_t call) const {
  const int64_t cols = all.cols / calls_;
  return all.Cols(call * cols, (call + 1) * cols);
}

Tensor EngineAttention::PackedKv(int64_t which, const Tensor& like) const {
  const int64_t bytes = plan().shape().tokens_kv * like.cols * 2;
  LH_CHECK((which + 1) * bytes <= memory_.packed_kv.bytes);
  return MakeTensor(static_cast<char*>(memory_.packed_kv.data) + which * bytes, DType::kBF16, like.rows, like.cols);
}

SdpaBuffers EngineAttention::Buffers(int64_t call, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& o,
                                     const Tensor& lse) const {
  const SdpaShape& shape = plan().shape();
  Tensor own_k = k, own_v = v;
  if (k.stride != shape.k_stride) {
    own_k = PackedKv(0, k);
    own_v = PackedKv(1, v);
    Copy(exec_, k, own_k);
    Copy(exec_, v, own_v);
  }
  LH_CHECK(q.stride == shape.q_stride && own_k.stride == shape.k_stride && own_v.stride == shape.v_stride &&
           o.stride == shape.o_stride);
  SdpaBuffers buffers;
  buffers.q = q.data;
  buffers.k = own_k.data;
  buffers.v = own_v.data;
  buffers.o = o.data;
  buffers.stats = lse.as<float>() + call * SdpaStatsBytes(shape, cudnn_->device()) / 4;
  return buffers;
}

void EngineAttention::CallForward(int64_t call, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& o,
                                  const Tensor& lse) const {
  const StreamProfile::Scope scope(profile_, "attention forward");
  SdpaBuffers buffers = Buffers(call, q, k, v, o, lse);
  for (int64_t part = 0; part < parts(); ++part) {
    if (!is_dense_) buffers.index = Index(part);
    plan().Forward(exec_.cuda().compute.get(), buffers, memory_.attention_forward.data);
  }
}

void EngineAttention::CallBackward(int64_t call, const Tensor& d_o, const Tensor& q, const Tensor& k, const Tensor& v,
                                   const Tensor& o, const Tensor& lse, const Tensor& dq, const Tensor& dk,
                                   const Tensor& dv) const {
  const StreamProfile::Scope scope(profile_, "attention backward");
  const SdpaShape& shape = plan().shape();
  LH_CHECK(dq.stride == shape.dq_stride && d_o.stride == shape.d_o_stride);
  SdpaBuffers buffers = Buffers(call, q, k, v, o, lse);
  const bool in_place = dk.stride == shape.dk_stride;
  const Tensor own_dk = in_place ? dk : PackedKv(2, dk);
  const Tensor own_dv = in_place ? dv : PackedKv(3, dv);
  LH_CHECK(own_dk.stride == shape.dk_stride && own_dv.stride == shape.dv_stride);
  buffers.d_o = d_o.data;
  buffers.dq = dq.data;
  buffers.dk = own_dk.data;
  buffers.dv = own_dv.data;
  for (int64_t part = 0; part < parts(); ++part) {
    if (!is_dense_) buffers.index = Index(part);
    plan().Backward(exec_.cuda().compute.get(), buffers, memory_.attention_backward.data);
  }
  if (in_place) return;
  Copy(exec_, own_dk, dk);
  Copy(exec_, own_dv, dv);
}

void EngineAttention::Forward(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& o,
                              const Tensor& lse) const {
  for (int64_t call = 0; call < calls_; ++call) {
    CallForward(call, Part(q, call), Part(k, call), Part(v, call), Part(o, call), lse);
  }
}

void EngineAttention::Backward(const Tensor& d_o, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& o,
                               const Tensor& lse, const Tensor& dq, const Tensor& dk, const Tensor& dv) const {
  for (int64_t call = 0; call < calls_; ++call) {
    CallBackward(call, Part(d_o, call), Part(q, call), Part(k, call), Part(v, call), Part(o, call), lse, Part(dq, call),
                 Part(dk, call), Part(dv, call));
  }
}

std::string EngineAttention::Describe() const {
  const std::string packed = "packed documents by " + packed_->description();
  return dense_ == nullptr ? packed : "attention by " + dense_->description() + "; " + packed;
}

}  // namespace longhaul::kernels::cuda
