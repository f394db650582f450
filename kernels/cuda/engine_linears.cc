#include "kernels/cuda/engine_linears.h"

#include <utility>

#include "base/check.h"
#include "base/random.h"
#include "kernels/cuda/adapter_kernels.h"
#include "kernels/cuda/cuda_exec.h"

namespace longhaul::kernels::cuda {
namespace {

// 16 bytes, or what an f32 result of `stride` elements a row allows.
int64_t ResultAlignment(int64_t stride) { return stride % 4 == 0 ? 16 : 4; }

// `cols` columns behind those of rows.
Tensor Behind(const Tensor& rows, int64_t cols) {
  LH_CHECK(rows.stride >= rows.cols + cols);
  return {Bf16At(rows.data, rows.cols), DType::kBF16, rows.rows, cols, rows.stride};
}

}  // namespace

EngineLinears::EngineLinears(const Exec& exec, LtGemm* gemm, StreamProfile* profile, const CudaEngineMemory& memory,
                             std::vector<CudaLinear> linears, bool fp8)
    : exec_(exec), gemm_(gemm), profile_(profile), memory_(memory) {
  if (fp8) fp8_ = std::make_unique<Fp8Products>(exec, gemm, profile, memory);
  for (CudaLinear& given : linears) {
    Linear linear;
    linear.frozen = {given.fold, std::move(given.quantised), given.cache};
    linear.parts = std::move(given.parts);
    linear.scale = static_cast<float>(given.lora_scale);
    linear.buffer = given.buffer != nullptr ? given.buffer : memory.weight.data;
    linear.block = given.adapter;
    for (const CudaLoraPart& part : linear.parts) {
      linear.adapter.push_back({part.a, part.b, part.rank, part.out, linear.scale});
    }
    LH_CHECK(PaddedRank(linear.adapter) == given.fold.rank);
    LH_CHECK(fp8 || given.cache != nullptr || given.buffer != nullptr ||
             given.fold.weight_bytes() <= memory.weight.bytes);
    LH_CHECK(!fp8 || given.fold.rank == 0 || linear.block != nullptr);
    linears_.push_back(std::move(linear));
  }
}

void EngineLinears::PlaceAdapters() const {
  for (const Linear& linear : linears_) {
    if (fp8_ != nullptr) {
      PlaceBlock(linear);
    } else if (linear.frozen.cache != nullptr) {
      PlaceAdapter(exec_, linear.frozen.fold, linear.adapter, linear.frozen.cache);
    }
  }
}

// The two matrices have strides of their own.
void EngineLinears::PlaceBlock(const Linear& linear) const {
  LoraFold fold = linear.frozen.fold;
  if (fold.rank == 0) return;
  const Matrices m = In(linear, nullptr);
  const cudaStream_t stream = exec_.cuda().compute.get();
  fold.weight_stride = m.sb_stride;
  LaunchPlaceAdapter(stream, fold, linear.adapter, 0, fold.out, linear.block, nullptr);
  fold.weight_stride = m.a_stride;
  LaunchPlaceAdapter(stream, fold, linear.adapter, 0, 0, linear.block, const_cast<void*>(m.a));
}

void EngineLinears::SetDropout(double probability, uint64_t key) {
  LH_CHECK(probability == 0 || memory_.dropout.data != nullptr);
  dropout_ = probability;
  dropout_key_ = key;
}

void EngineLinears::Run(const GemmShape& shape, float alpha, const GemmOperands& operands) {
  gemm_->PlanAndRun(exec_.cuda().compute.get(), shape, alpha, operands, {memory_.gemm.data, memory_.gemm.bytes});
}

EngineLinears::Matrices EngineLinears::In(const Linear& linear, const void* weight) const {
  const LoraFold& fold = linear.frozen.fold;
  if (fp8_ == nullptr) {
    return {Bf16At(weight, fold.sb_offset()), Bf16At(weight, fold.a_offset()), fold.weight_stride, fold.weight_stride};
  }
  const Fp8Linear layout{fold.out, fold.in, fold.rank};
  return {linear.block, Bf16At(linear.block, layout.a_offset_bytes() / kBf16Bytes), fold.rank, fold.in};
}

const void* EngineLinears::Weight(const Linear& linear) {
  if (fp8_ != nullptr || linear.frozen.cache != nullptr) return linear.frozen.cache;
  const StreamProfile::Scope scope(profile_, "dequantise");
  return PrepareWeight(exec_, linear.frozen, linear.adapter, linear.buffer);
}

Tensor EngineLinears::Dropped(const CudaLoraPart& part, const Tensor& x, int64_t first_row) const {
  const Tensor to{memory_.dropout.data, DType::kBF16, x.rows, x.cols, x.cols};
  LH_CHECK(to.bytes() <= memory_.dropout.bytes);
  kernels::Dropout(exec_, x, CounterBits(dropout_key_, part.dropout_number), first_row, dropout_, to);
  return to;
}

void EngineLinears::Down(const Linear& linear, const Matrices& m, const Tensor& x, int64_t first_row, const Tensor& u) {
  GemmShape shape = LoraDown(linear.frozen.fold, x.rows);
  shape.b_stride = m.a_stride;
  shape.c_stride = u.stride;
  const StreamProfile::Scope scope(profile_, "lora u");
  if (dropout_ == 0) {
    shape.a_stride = x.stride;
    Run(shape, 1, {x.data, m.a, u.data});
    return;
  }
  int64_t rank = 0;
  for (const CudaLoraPart& part : linear.parts) {
    if (part.rank == 0) continue;
    const Tensor kept = Dropped(part, x, first_row);
    shape.a_stride = kept.stride;
    shape.n = PaddedLoraRank(part.rank);
    Run(shape, 1, {kept.data, Bf16At(m.a, rank * m.a_stride), Bf16At(u.data, rank)});
    rank += shape.n;
  }
}

void EngineLinears::Forward(size_t index, const Tensor& x, int64_t first_row, const Tensor& residual, const Tensor& y,
                            const Tensor& u) {
  const Linear& linear = linears_.at(index);
  LoraFold fold = linear.frozen.fold;
  LH_CHECK(x.cols == fold.in && y.cols == fold.out && x.rows == y.rows);
  LH_CHECK(residual.data == nullptr || (residual.stride == y.stride && residual.rows == y.rows));
  const void* const weight = Weight(linear);
  const Matrices m = In(linear, weight);
  if (fp8_ == nullptr) {
    if (fold.rank > 0) {
      const Tensor behind = Behind(x, fold.rank);
      Down(linear, m, x, first_row, behind);
      const StreamProfile::Scope scope(profile_, "lora u");
      if (u.data != nullptr) Copy(exec_, behind, u);
    }
    fold.x_stride = x.stride;
    fold.y_stride = y.stride;
    GemmShape shape = LoraKForward(fold, x.rows);
    shape.accumulate = residual.data != nullptr;
    GemmOperands operands{x.data, weight, y.data};
    operands.added_to = residual.data;
    const StreamProfile::Scope scope(profile_, "linears forward");
    return Run(shape, 1, operands);
  }
  const Fp8Products::Operand rows = fp8_->Quantise(x);
  if (fold.rank == 0) return fp8_->Forward(linear.frozen, rows, residual, y);
  const Tensor down = u.data != nullptr ? u : Behind(x, fold.rank);
  Down(linear, m, x, first_row, down);
  GemmShape up = LoraUpAdd(fold, x.rows);
  up.accumulate = residual.data != nullptr;
  up.a_stride = down.stride;
  up.b_stride = m.sb_stride;
  up.c_stride = y.stride;
  GemmOperands operands{down.data, m.sb, y.data};
  operands.added_to = residual.data;
  {
    const StreamProfile::Scope scope(profile_, "lora up");
    Run(up, 1, operands);
  }
  fp8_->Forward(linear.frozen, rows, /*residual=*/y, y);
}

void EngineLinears::Input(size_t index, const Tensor& x, int64_t first_row, const Tensor& u) {
  const Linear& linear = linears_.at(index);
  const LoraFold& fold = linear.frozen.fold;
  if (fold.rank == 0) return;
  const void* weight = linear.frozen.cache;
  if (fp8_ == nullptr && weight == nullptr) {
    weight = linear.buffer;
    LaunchPlaceAdapter(exec_.cuda().compute.get(), fold, linear.adapter, 0, 0, linear.buffer,
                       Bf16At(linear.buffer, fold.a_offset()));
  }
  Down(linear, In(linear, weight), x, first_row, u);
}

void EngineLinears::BackwardUp(const Linear& linear, const Matrices& m, const Tensor& v, int64_t first_row,
                               const Tensor& dx) {
  GemmShape shape = LoraBackwardUpAdd(linear.frozen.fold, v.rows);
  shape.accumulate = false;
  shape.a_stride = v.stride;
  shape.b_stride = m.a_stride;
  shape.c_stride = dx.stride;
  const StreamProfile::Scope scope(profile_, "lora up");
  if (dropout_ == 0) return Run(shape, 1, {v.data, m.a, dx.data});
  int64_t rank = 0;
  for (const CudaLoraPart& part : linear.parts) {
    if (part.rank == 0) continue;
    const bool is_first = rank == 0;
    const Tensor to = is_first ? dx : Tensor{memory_.dropout.data, DType::kBF16, dx.rows, dx.cols, dx.cols};
    LH_CHECK(is_first || to.bytes() <= memory_.dropout.bytes);
    shape.k = PaddedLoraRank(part.rank);
    shape.c_stride = to.stride;
    Run(shape, 1, {Bf16At(v.data, rank), Bf16At(m.a, rank * m.a_stride), to.data});
    kernels::Dropout(exec_, to, CounterBits(dropout_key_, part.dropout_number), first_row, dropout_, to);
    if (!is_first) Add(exec_, to, dx);
    rank += shape.k;
  }
}

void EngineLinears::BackwardInput(size_t index, const Tensor& dy, int64_t first_row, const Tensor& dx) {
  const Linear& linear = linears_.at(index);
  LoraFold fold = linear.frozen.fold;
  if (fold.rank == 0 && dx.data == nullptr) return;
  LH_CHECK(dy.cols == fold.out);
  LH_CHECK(dx.data == nullptr || (dx.cols == fold.in && dx.rows == dy.rows));
  fold.y_stride = dy.stride;
  const void* const weight = Weight(linear);
  const Matrices m = In(linear, weight);
  const Tensor v = fold.rank > 0 ? Behind(dy, fold.rank) : Tensor{};
  Fp8Products::Operand rows;
  if (fp8_ != nullptr && dx.data != nullptr) rows = fp8_->Quantise(dy);
  if (fold.rank > 0) {
    GemmShape shape = LoraBackwardDown(fold, dy.rows);
    shape.b_stride = m.sb_stride;
    const StreamProfile::Scope scope(profile_, "lora v");
    Run(shape, 1, {dy.data, m.sb, v.data});
  }
  if (dx.data == nullptr) return;
  const bool apart = fold.rank > 0 && (fp8_ != nullptr || dropout_ > 0);
  if (apart) BackwardUp(linear, m, v, first_row, dx);
  if (fp8_ != nullptr) return fp8_->Backward(linear.frozen, rows, /*accumulate=*/apart, dx);
  fold.dx_stride = dx.stride;
  GemmShape shape = apart ? LoraBaseBackward(fold, dy.rows) : LoraKBackward(fold, dy.rows);
  shape.accumulate = apart;
  const StreamProfile::Scope scope(profile_, "linears backward");
  Run(shape, 1, {dy.data, weight, dx.data});
}

void EngineLinears::GradB(const Linear& linear, const Tensor& dy, const Tensor& u) {
  LoraFold fold = linear.frozen.fold;
  fold.y_stride = dy.stride;
  GemmShape shape = LoraGradB(fold, dy.rows, /*accumulate=*/true);
  shape.b_stride = u.stride;
  const StreamProfile::Scope scope(profile_, "lora dB");
  int64_t out = 0, rank = 0;
  for (const CudaLoraPart& part : linear.parts) {
    if (part.rank > 0) {
      shape.m = part.out;
      shape.n = shape.c_stride = part.rank;
      shape.alignment_bytes = ResultAlignment(part.rank);
      Run(shape, linear.scale, {Bf16At(dy.data, out), Bf16At(u.data, rank), part.grad_b});
    }
    out += part.out;
    rank += PaddedLoraRank(part.rank);
  }
}

void EngineLinears::GradA(const Linear& linear, const Tensor& v, const Tensor& x, int64_t first_row) {
  LoraFold fold = linear.frozen.fold;
  fold.x_stride = x.stride;
  fold.y_stride = v.stride;
  GemmShape shape = LoraGradA(fold, v.rows, /*accumulate=*/true);
  const StreamProfile::Scope scope(profile_, "lora dA");
  // Where no rank is padded, the A's of the stack are one matrix; of inputs that are dropped each has its own.
  bool is_one = dropout_ == 0;
  float* first = nullptr;
  const float* next = nullptr;
  for (const CudaLoraPart& part : linear.parts) {
    if (part.rank == 0) continue;
    if (first == nullptr) first = part.grad_a;
    is_one = is_one && part.rank % kLoraRankUnit == 0 && (next == nullptr || part.grad_a == next);
    next = part.grad_a + part.rank * fold.in;
  }
  if (is_one) return Run(shape, 1, {v.data, x.data, first});
  int64_t rank = 0;
  for (const CudaLoraPart& part : linear.parts) {
    if (part.rank == 0) continue;
    const Tensor kept = dropout_ == 0 ? x : Dropped(part, x, first_row);
    shape.m = part.rank;
    shape.b_stride = kept.stride;
    Run(shape, 1, {Bf16At(v.data, rank), kept.data, part.grad_a});
    rank += PaddedLoraRank(part.rank);
  }
}

void EngineLinears::Gradients(size_t index, const Tensor& dy, const Tensor& x, int64_t first_row, const Tensor& u) {
  const Linear& linear = linears_.at(index);
  const LoraFold& fold = linear.frozen.fold;
  if (fold.rank == 0) return;
  LH_CHECK(x.cols == fold.in && u.cols == fold.rank && dy.cols == fold.out);
  // x was made just before: it is still in the cache, as far as it fits, and dy is not.
  GradA(linear, Behind(dy, fold.rank), x, first_row);
  GradB(linear, dy, u);
}

}  // namespace longhaul::kernels::cuda
