// Where a test program runs the ops: linked in, so that one test body serves every backend. place_cpu.cc makes it the
// CPU in f32 and f64, place_cuda.cc CUDA device 0 in f32 and bf16.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/exec.h"
#include "kernels/tensor.h"

namespace longhaul::kernels {

// The activations' types.
const std::vector<DType>& TestedTypes();
// `threads` and `type` are the CPU's; CUDA has one way to run.
std::unique_ptr<Exec> MakeExec(int threads, GemmType type = GemmType::kF32);
// Memory that host and Exec both read and write.
void* AllocateForTests(size_t bytes);
void FreeForTests(void* data);
// The host may look at results after this.
void WaitForOps();
// Relative error of a sum of n terms of one sign, rounded as this backend rounds.
double SumError(DType dtype, int64_t n);

}  // namespace longhaul::kernels
