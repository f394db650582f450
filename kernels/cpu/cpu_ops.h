// The CPU bodies behind ops.h: the same signatures, called through the op table after the checks of ops.cc.
#pragma once

#include "kernels/op_table.h"

namespace longhaul::kernels::cpu {

void Gemm(const Exec& exec, bool transpose_a, bool transpose_b, double alpha, const Tensor& a, const Tensor& b,
          double beta, const Tensor& c);
void GemmF64(const Exec& exec, bool transpose_a, bool transpose_b, double alpha, const Tensor& a, const Tensor& b,
             double beta, const Tensor& c);
// The same product on the calling thread alone, as one call of the library. For regions that are already parallel over
// documents and heads.
void SerialGemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, float alpha, const float* a,
                int64_t a_stride, const float* b, int64_t b_stride, float beta, float* c, int64_t c_stride);
void SerialGemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, double alpha, const double* a,
                int64_t a_stride, const double* b, int64_t b_stride, double beta, double* c, int64_t c_stride);

// The bodies of ops.h, each of the signature that it has there.
decltype(kernels::FrozenForward) FrozenForward;
decltype(kernels::FrozenBackward) FrozenBackward;
decltype(kernels::LoraForward) LoraForward;
decltype(kernels::LoraBackward) LoraBackward;
decltype(kernels::RmsNorm) RmsNorm;
decltype(kernels::AddRmsNorm) AddRmsNorm;
decltype(kernels::RmsNormBackward) RmsNormBackward;
decltype(kernels::RmsNormBackwardRows) RmsNormBackwardRows;
decltype(kernels::HeadRmsNorm) HeadRmsNorm;
decltype(kernels::HeadRmsNormBackward) HeadRmsNormBackward;
decltype(kernels::Rope) Rope;
decltype(kernels::HeadRmsNormRope) HeadRmsNormRope;
decltype(kernels::HeadRmsNormRopeBackward) HeadRmsNormRopeBackward;
decltype(kernels::SwiGlu) SwiGlu;
decltype(kernels::SwiGluBackward) SwiGluBackward;
decltype(kernels::GeGlu) GeGlu;
decltype(kernels::GeGluBackward) GeGluBackward;
decltype(kernels::Add) Add;
decltype(kernels::Scale) Scale;
decltype(kernels::CopyScaled) CopyScaled;
decltype(kernels::Zero) Zero;
decltype(kernels::GatherRows) GatherRows;
decltype(kernels::ScatterRows) ScatterRows;
decltype(kernels::Dropout) Dropout;
decltype(kernels::Uniform) Uniform;
decltype(kernels::CountNonFinite) CountNonFinite;
decltype(kernels::AttentionForward) AttentionForward;
decltype(kernels::AttentionBackward) AttentionBackward;
decltype(kernels::LossTile) LossTile;
decltype(kernels::BeginLoss) BeginLoss;
decltype(kernels::UpdateLoss) UpdateLoss;
decltype(kernels::FinishLoss) FinishLoss;
decltype(kernels::SumOfSquares) SumOfSquares;
decltype(kernels::PrepareUpdate) PrepareUpdate;
decltype(kernels::AdamW) AdamW;
decltype(kernels::AdamW8bit) AdamW8bit;
decltype(kernels::Nf4Quantize) Nf4Quantize;
decltype(kernels::Nf4NestAbsmax) Nf4NestAbsmax;
decltype(kernels::Nf4Dequantize) Nf4Dequantize;

// All of them.
const OpTable& Ops();

}  // namespace longhaul::kernels::cpu
