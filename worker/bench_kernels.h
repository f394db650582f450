// longhaul-bench kernels: the products of a model's step, through the engine and through the GEMM library alone; on a
// GPU also what it dequantises, attention and the loss.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "nlohmann/json_fwd.hpp"

namespace longhaul {

struct BenchKernelsOptions {
  std::string device = "cpu";          // or cuda, the first device: never the one for the other
  std::string shape = "smollm2-135m";  // BenchShape
  std::string compute;                 // f32 or bf16, on a GPU bf16 or fp8; empty: the fastest of this CPU, bf16
  int64_t tokens = 1024;               // a sequence
  int64_t batch = 1;                   // sequences
  int64_t rank = 16;                   // of a GPU: LoRA is part of its linears
  bool deterministic = false;          // of a GPU
  int threads = 0;                     // 0: all

  int64_t rows() const { return tokens * batch; }
};

// An array: {"name": "device", "device": ...}, then a row a kernel. Products have rows, in, out, seconds, flops_per_s,
// library_flops_per_s and library_ratio: on a GPU the engine's linear, its adapter's work included and not counted,
// against cuBLASLt alone. Of a GPU also: "... dequantise" with seconds, bytes_per_s (moved), copy_bytes_per_s and
// copy_ratio; "attention ..." and "... LoRA gradients" with seconds and flops_per_s; "loss" as a product, against its
// two products over all rows at once.
// Errors: those of the plan and the engine; UNAVAILABLE where a GPU is asked for and there is none.
absl::StatusOr<nlohmann::json> BenchKernels(const BenchKernelsOptions& options);

// The part of it that is of GPUs. Throws CudaError.
absl::StatusOr<nlohmann::json> BenchCudaKernels(const BenchKernelsOptions& options);

// A row's share of what it is compared with, and how it reads in a terminal.
std::string KernelRowText(const nlohmann::json& row);

}  // namespace longhaul
