#include "kernels/cuda/engine_linears.h"

#include <utility>

#include "base/check.h"
#include "kernels/cuda/adapter_kernels.h"
#include "kernels/cuda/cuda_exec.h"

namespace longhaul::kernels::cuda {
namespace {

constexpr int64_t kBf16Bytes = 2;

const void* At(const void* matrix, int64_t element) { return static_cast<const char*>(matrix) + element * kBf16Bytes; }
void* At(void* matrix, int64_t element) { return static_cast<char*>(matrix) + element * kBf16Bytes; }

int64_t Padded(int64_t rank) { return (rank + kLoraRankUnit - 1) / kLoraRankUnit * kLoraRankUnit; }

// 16 bytes, or what an f32 result of `stride` elements a row allows.
int64_t ResultAlignment(int64_t stride) { return stride % 4 == 0 ? 16 : 4; }

}  // namespace

EngineLinears::EngineLinears(const Exec& exec, LtGemm* gemm, StreamProfile* profile, const CudaEngineMemory& memory,
                             std::vector<CudaLinear> linears)
    : exec_(exec), gemm_(gemm), profile_(profile), workspace_{memory.gemm.data, memory.gemm.bytes} {
  for (CudaLinear& given : linears) {
    Linear linear;
    linear.frozen = {given.fold, std::move(given.quantised), given.cache};
    linear.parts = std::move(given.parts);
    linear.scale = static_cast<float>(given.lora_scale);
    linear.buffer = given.buffer != nullptr ? given.buffer : memory.weight.data;
    for (const CudaLoraPart& part : linear.parts) {
      linear.adapter.push_back({part.a, part.b, part.rank, part.out, linear.scale});
    }
    LH_CHECK(PaddedRank(linear.adapter) == given.fold.rank);
    LH_CHECK(given.cache != nullptr || given.buffer != nullptr || given.fold.weight_bytes() <= memory.weight.bytes);
    linears_.push_back(std::move(linear));
  }
}

void EngineLinears::PlaceAdapters() const {
  for (const Linear& linear : linears_) {
    if (linear.frozen.cache != nullptr) {
      PlaceAdapter(exec_, linear.frozen.fold, linear.adapter, linear.frozen.cache);
    }
  }
}

void EngineLinears::Run(const GemmShape& shape, float alpha, const GemmOperands& operands) {
  const auto bytes = gemm_->Plan(shape);
  if (!bytes.ok()) throw CudaError("Linear", GemmKey(shape), 0, std::string(bytes.status().message()));
  gemm_->Run(exec_.cuda().compute.get(), shape, alpha, operands, workspace_);
}

const void* EngineLinears::Weight(const Linear& linear) {
  if (linear.frozen.cache != nullptr) return linear.frozen.cache;
  const StreamProfile::Scope scope(profile_, "dequantise");
  return PrepareWeight(exec_, linear.frozen, linear.adapter, linear.buffer);
}

const void* EngineLinears::DownWeight(const Linear& linear) {
  const LoraFold& fold = linear.frozen.fold;
  if (linear.frozen.cache != nullptr) return At(linear.frozen.cache, fold.a_offset());
  void* const a = At(linear.buffer, fold.a_offset());
  LaunchPlaceAdapter(exec_.cuda().compute.get(), fold, linear.adapter, 0, 0, linear.buffer, a);
  return a;
}

void EngineLinears::Down(const Linear& linear, const void* a, const Tensor& x, const Tensor& u) {
  LoraFold fold = linear.frozen.fold;
  fold.x_stride = x.stride;
  LH_CHECK(x.stride >= fold.in + fold.rank);
  const StreamProfile::Scope scope(profile_, "lora");
  const Tensor behind{At(x.data, fold.u_offset()), DType::kBF16, x.rows, fold.rank, x.stride};
  Run(LoraDown(fold, x.rows), 1, {x.data, a, behind.data});
  if (u.data != nullptr) Copy(exec_, behind, u);
}

void EngineLinears::Forward(size_t index, const Tensor& x, const Tensor& residual, const Tensor& y, const Tensor& u) {
  const Linear& linear = linears_.at(index);
  LoraFold fold = linear.frozen.fold;
  LH_CHECK(x.cols == fold.in && y.cols == fold.out && x.rows == y.rows);
  const void* const weight = Weight(linear);
  if (fold.rank > 0) Down(linear, At(weight, fold.a_offset()), x, u);
  fold.x_stride = x.stride;
  fold.y_stride = y.stride;
  GemmShape shape = LoraKForward(fold, x.rows);
  shape.accumulate = residual.data != nullptr;
  LH_CHECK(!shape.accumulate || (residual.stride == y.stride && residual.rows == y.rows));
  const StreamProfile::Scope scope(profile_, "linears forward");
  GemmOperands operands{x.data, weight, y.data};
  operands.added_to = residual.data;
  Run(shape, 1, operands);
}

void EngineLinears::Input(size_t index, const Tensor& x, const Tensor& u) {
  const Linear& linear = linears_.at(index);
  if (linear.frozen.fold.rank > 0) Down(linear, DownWeight(linear), x, u);
}

void EngineLinears::BackwardInput(size_t index, const Tensor& dy, const Tensor& dx) {
  const Linear& linear = linears_.at(index);
  LoraFold fold = linear.frozen.fold;
  if (fold.rank == 0 && dx.data == nullptr) return;
  LH_CHECK(dy.cols == fold.out && dy.stride >= fold.out + fold.rank);
  fold.y_stride = dy.stride;
  const void* const weight = Weight(linear);
  if (fold.rank > 0) {
    const StreamProfile::Scope scope(profile_, "lora");
    Run(LoraBackwardDown(fold, dy.rows), 1, {dy.data, At(weight, fold.sb_offset()), At(dy.data, fold.v_offset())});
  }
  if (dx.data == nullptr) return;
  LH_CHECK(dx.cols == fold.in && dx.rows == dy.rows);
  fold.dx_stride = dx.stride;
  const StreamProfile::Scope scope(profile_, "linears backward");
  Run(LoraKBackward(fold, dy.rows), 1, {dy.data, weight, dx.data});
}

void EngineLinears::Gradients(size_t index, const Tensor& dy, const Tensor& x, const Tensor& u) {
  const Linear& linear = linears_.at(index);
  LoraFold fold = linear.frozen.fold;
  if (fold.rank == 0) return;
  LH_CHECK(x.cols == fold.in && u.cols == fold.rank && dy.cols == fold.out);
  const StreamProfile::Scope scope(profile_, "lora");
  fold.x_stride = x.stride;
  fold.y_stride = dy.stride;
  const GemmShape a_shape = LoraGradA(fold, dy.rows, /*accumulate=*/true);
  GemmShape b_shape = LoraGradB(fold, dy.rows, /*accumulate=*/true);
  b_shape.b_stride = u.stride;
  // Where no rank is padded, the A's of the stack are one matrix.
  bool is_one = true;
  const float* next = linear.parts[0].grad_a;
  for (const CudaLoraPart& part : linear.parts) {
    is_one = is_one && part.rank % kLoraRankUnit == 0 && (part.rank == 0 || part.grad_a == next || next == nullptr);
    if (part.rank > 0) next = part.grad_a + part.rank * fold.in;
  }
  const void* const v = At(dy.data, fold.v_offset());
  float* first_a = nullptr;
  int64_t out = 0, rank = 0;
  for (const CudaLoraPart& part : linear.parts) {
    if (part.rank > 0) {
      if (first_a == nullptr) first_a = part.grad_a;
      if (!is_one) {
        GemmShape one = a_shape;
        one.m = part.rank;
        Run(one, 1, {At(v, rank), x.data, part.grad_a});
      }
      b_shape.m = part.out;
      b_shape.n = b_shape.c_stride = part.rank;
      b_shape.alignment_bytes = ResultAlignment(part.rank);
      Run(b_shape, linear.scale, {At(dy.data, out), At(u.data, rank), part.grad_b});
    }
    out += part.out;
    rank += Padded(part.rank);
  }
  if (is_one) Run(a_shape, 1, {v, x.data, first_a});
}

}  // namespace longhaul::kernels::cuda
