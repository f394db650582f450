#include "kernels/cuda/engine_attention.h"

#include <algorithm>

#include "base/check.h"
#include "base/error.h"
#include "base/status_macros.h"
#include "kernels/cuda/cuda_exec.h"

namespace longhaul::kernels::cuda {

absl::StatusOr<std::unique_ptr<EngineAttention>> EngineAttention::Create(const Exec& exec, StreamProfile* profile,
                                                                         const CudaEngineMemory& memory,
                                                                         const CudaEngineShapes& shapes) {
  std::unique_ptr<EngineAttention> created(new EngineAttention(exec, profile, memory));
  created->calls_ = shapes.attention_calls;
  LH_ASSIGN_OR_RETURN(created->cudnn_, Cudnn::Create());
  LH_ASSIGN_OR_RETURN(created->packed_, SdpaPlan::Create(created->cudnn_.get(), shapes.packed,
                                                         {.only_reference = shapes.packed.deterministic}));
  LH_RETURN_IF_ERROR(created->CheckWorkspace(*created->packed_));
  if (shapes.dense.has_value()) {
    LH_ASSIGN_OR_RETURN(created->dense_, SdpaPlan::Create(created->cudnn_.get(), *shapes.dense, {}));
    LH_RETURN_IF_ERROR(created->CheckWorkspace(*created->dense_));
  }
  return created;
}

absl::Status EngineAttention::CheckWorkspace(const SdpaPlan& plan) const {
  if (plan.forward_workspace_bytes() <= memory_.attention_forward.bytes &&
      plan.backward_workspace_bytes() <= memory_.attention_backward.bytes &&
      SdpaIndexBytes(plan.shape()) <= memory_.attention_index.bytes) {
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
  LH_CHECK(documents <= packed_->shape().batch, std::to_string(documents) + " documents");
  LH_CHECK(offsets[packed_->shape().batch] == offsets[documents]);
  const int64_t bytes = (packed_->shape().batch + 1) * static_cast<int64_t>(sizeof(int64_t));
  LH_CHECK(bytes <= memory_.document_offsets.bytes);
  exec_.Upload(memory_.document_offsets.data, offsets, bytes);
  const auto* const on_device = static_cast<const int64_t*>(memory_.document_offsets.data);
  packed_->PrepareIndex(exec_.cuda().compute.get(), on_device, on_device, memory_.attention_index.data);
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
  buffers.index = is_dense_ ? nullptr : memory_.attention_index.data;
  return buffers;
}

void EngineAttention::CallForward(int64_t call, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& o,
                                  const Tensor& lse) const {
  const StreamProfile::Scope scope(profile_, "attention forward");
  plan().Forward(exec_.cuda().compute.get(), Buffers(call, q, k, v, o, lse), memory_.attention_forward.data);
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
  plan().Backward(exec_.cuda().compute.get(), buffers, memory_.attention_backward.data);
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
