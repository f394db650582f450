// The CUDA bodies behind ops.h: the same signatures, called through the op table after the checks of ops.cc.
// Activations are bf16 or f32; everything is queued on exec.cuda().compute.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/op_table.h"

namespace longhaul::kernels::cuda {

// The bodies of ops.h, each of the signature that it has there.
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

// Whether this build has code that the current device can run.
cudaError_t ProbeKernels();

}  // namespace longhaul::kernels::cuda
