#include "kernels/cuda/fp8_products.h"

#include "base/check.h"
#include "kernels/cuda/cuda_exec.h"
#include "kernels/cuda/fp8_quantise.h"

namespace longhaul::kernels {
namespace cuda {
namespace {

char* At(void* block, int64_t bytes) { return static_cast<char*>(block) + bytes; }
float* Scales(void* block, int64_t bytes) { return reinterpret_cast<float*>(At(block, bytes)); }

Fp8Linear LayoutOf(const LoraFold& fold) { return {fold.out, fold.in, fold.rank}; }

}  // namespace

Fp8Products::Fp8Products(const Exec& exec, LtGemm* gemm, StreamProfile* profile, const CudaEngineMemory& memory)
    : exec_(exec), gemm_(gemm), profile_(profile), memory_(memory) {}

Fp8Products::Operand Fp8Products::Quantise(const Tensor& x) const {
  LH_CHECK(x.dtype == DType::kBF16 && Fp8RowsBytes(x.rows, x.cols) <= memory_.fp8_rows.bytes);
  void* const values = memory_.fp8_rows.data;
  float* const scales = Scales(values, Fp8RowsScale(x.rows, x.cols));
  const StreamProfile::Scope scope(profile_, "quantise");
  QuantiseRows(exec_.cuda().compute.get(), x.data, x.stride, x.rows, x.cols, values, x.cols, scales);
  return {values, scales};
}

Fp8Products::Operand Fp8Products::Weight(const FrozenLinear& linear, bool transposed) const {
  const Fp8Linear layout = LayoutOf(linear.fold);
  if (linear.cache != nullptr) {
    if (transposed) return {At(linear.cache, layout.backward()), Scales(linear.cache, layout.backward_scale())};
    return {linear.cache, Scales(linear.cache, layout.forward_scale())};
  }
  LH_CHECK(layout.source_bytes() <= memory_.weight.bytes && layout.one_way_bytes() <= memory_.fp8_weight.bytes);
  const StreamProfile::Scope scope(profile_, "dequantise");
  FrozenLinear plain = linear;
  plain.fold.weight_stride = layout.in;
  FillWeight(exec_, plain, memory_.weight.data);
  void* const values = memory_.fp8_weight.data;
  float* const scales = Scales(values, Fp8Linear::Up(layout.out * layout.in));
  const cudaStream_t stream = exec_.cuda().compute.get();
  if (transposed) {
    QuantiseTransposed(stream, memory_.weight.data, layout.in, layout.out, layout.in, values, layout.out, scales);
  } else {
    QuantiseRows(stream, memory_.weight.data, layout.in, layout.out, layout.in, values, layout.in, scales);
  }
  return {values, scales};
}

void Fp8Products::Forward(const FrozenLinear& linear, const Operand& x, const Tensor& residual, const Tensor& y) const {
  const Operand weight = Weight(linear, /*transposed=*/false);
  const GemmShape shape = Fp8Forward(LayoutOf(linear.fold), y.rows, y.stride, residual.data != nullptr);
  const StreamProfile::Scope scope(profile_, "linears forward");
  gemm_->PlanAndRun(exec_.cuda().compute.get(), shape, 1,
                    {x.values, weight.values, y.data, x.scales, weight.scales, residual.data},
                    {memory_.gemm.data, memory_.gemm.bytes});
}

void Fp8Products::Backward(const FrozenLinear& linear, const Operand& dy, bool accumulate, const Tensor& dx) const {
  const Operand weight = Weight(linear, /*transposed=*/true);
  const GemmShape shape = Fp8Backward(LayoutOf(linear.fold), dx.rows, dx.stride, accumulate);
  const StreamProfile::Scope scope(profile_, "linears backward");
  gemm_->PlanAndRun(exec_.cuda().compute.get(), shape, 1, {dy.values, weight.values, dx.data, dy.scales, weight.scales},
                    {memory_.gemm.data, memory_.gemm.bytes});
}

}  // namespace cuda

void FillFp8Cache(const Exec& exec, const Tensor& w, void* cache) {
  LH_CHECK(exec.backend() == Backend::kCuda && w.dtype == DType::kBF16);
  const cuda::Fp8Linear layout{w.rows, w.cols};
  const cudaStream_t stream = exec.cuda().compute.get();
  cuda::QuantiseRows(stream, w.data, w.stride, w.rows, w.cols, cache, w.cols,
                     cuda::Scales(cache, layout.forward_scale()));
  cuda::QuantiseTransposed(stream, w.data, w.stride, w.rows, w.cols, cuda::At(cache, layout.backward()), w.rows,
                           cuda::Scales(cache, layout.backward_scale()));
}

}  // namespace longhaul::kernels
