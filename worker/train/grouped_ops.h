// What the decoder asks of a backend where a plan has attention a group of heads at a time (grouped_attention): their
// linears, their attention, and where layers' inputs and attention's outputs wait. CUDA: cuda_groups.{h,cc}; a CPU plan
// has none. Not thread-safe.
#pragma once

#include <cstdint>

#include "kernels/tensor.h"

namespace longhaul::train {

class GroupedOps {
 public:
  virtual ~GroupedOps() = default;

  // The weights of q, k and v for a group of a layer.
  virtual void BeginGroup(int64_t layer, int64_t group) = 0;
  // qkv [rows, the group's q, k and v] = h times them, LoRA included, before norms and rotation. h's rows have room for
  // u; u [rows, columns of its field] (null data where there is no LoRA) is written, or where has_u read. REQUIRES:
  // BeginGroup of the layer was the last.
  virtual void Project(int64_t layer, const kernels::Tensor& h, const kernels::Tensor& u, bool has_u,
                       const kernels::Tensor& qkv) = 0;
  // The weight of o for OutputGradient. Waits for the layer's statistics of attention, where they were fetched.
  virtual void BeginBackward(int64_t layer) = 0;
  // d_o [rows, the call's q] = columns [first, ...) of dy's way back through o. REQUIRES: o's BackwardInput of the same
  // dy before: what it left behind the rows is used.
  virtual void OutputGradient(int64_t layer, const kernels::Tensor& dy, int64_t first, const kernels::Tensor& d_o) = 0;

  // Attention of one call: its columns, and the statistics of all calls. dq may be q.
  virtual void AttentionForward(int64_t call, const kernels::Tensor& q, const kernels::Tensor& k,
                                const kernels::Tensor& v, const kernels::Tensor& o, const kernels::Tensor& lse) = 0;
  virtual void AttentionBackward(int64_t call, const kernels::Tensor& d_o, const kernels::Tensor& q,
                                 const kernels::Tensor& k, const kernels::Tensor& v, const kernels::Tensor& o,
                                 const kernels::Tensor& lse, const kernels::Tensor& dq, const kernels::Tensor& dk,
                                 const kernels::Tensor& dv) = 0;

  // Attention's output is about to be written over; it was written by layer's forward pass, and leaves where the plan
  // keeps it in host memory; no more leaves in this forward pass.
  virtual void BeginAttention() = 0;
  virtual void AttentionWritten(int64_t layer) = 0;
  virtual void EndForward() = 0;
  // Rows [begin, end), a tile: x and attention's output of `layer` are sent for, where they left; nobody reads what is
  // in their place any more. Below layer 0 there is nothing. Wait: until they are there.
  virtual void Fetch(int64_t layer, int64_t begin, int64_t end) = 0;
  virtual void Wait(int64_t begin) = 0;
};

}  // namespace longhaul::train
