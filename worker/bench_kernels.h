// longhaul-bench kernels: the GEMMs of a model's step, through the engine and through the GEMM library alone.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "nlohmann/json_fwd.hpp"

namespace longhaul {

struct BenchKernelsOptions {
  std::string shape = "smollm2-135m";  // BenchShape
  std::string compute;                 // f32 or bf16; empty: the fastest of this CPU
  int64_t rows = 1024;                 // tokens
  int threads = 0;                     // 0: all
};

// An array of {name, rows, in, out, flops_per_s, library_flops_per_s, library_ratio}.
absl::StatusOr<nlohmann::json> BenchKernels(const BenchKernelsOptions& options);

}  // namespace longhaul
