// longhaul-bench train: how fast this machine trains a model, and whether the memory plan is the truth. Random tokens,
// because a benchmark on zeros flatters.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "nlohmann/json_fwd.hpp"

namespace longhaul {

struct BenchTrainOptions {
  std::string device = "cpu";          // or cuda, the first device
  std::string model;                   // a GGUF file or a Hugging Face folder; empty: `shape` with made-up weights
  std::string shape = "smollm2-135m";  // BenchShape
  int64_t tokens = 512;                // a sequence
  int64_t batch = 2;                   // sequences a micro-batch
  int64_t documents = 1;               // a sequence, of equal length; more of them is how packed data looks
  bool alpaca_like = false;            // instead: packed documents of lengths by AlpacaLikeTokens
  int64_t rank = 16;
  std::string base;             // as_stored or nf4; empty: as_stored on a CPU, nf4 on a GPU
  std::string compute;          // f32 or bf16, on a GPU bf16 or fp8; empty: bf16 where there is one
  std::string share = "whole";  // or balanced, minimum
  int64_t host_bytes = 0;       // what the plan may use; 0: what is available
  int64_t device_bytes = 0;     // the same of a GPU's memory
  bool deterministic = false;   // of a GPU
  // Of a GPU, with steps: 16 more of them, whose kernels CUPTI records (kernels/cuda/device_activity.h).
  bool record_kernels = false;
  bool host_checkpoints = false;  // of a GPU: layers' inputs leave for host memory even where they need not
  int threads = 0;                // 0: all
  int64_t steps = 4;              // measured updates, after one that is not; 0: that one alone, for long contexts
  double trained = 1;             // share of targets that are trained
  bool dropout = false;           // a LoRA dropout of 0.1
};

// Of a GPU among others: profiled_parts, the seconds of one more step by part ("optimizer" and "copies" too; "copies
// beside" run while others do) and profiled_other_seconds of norms, RoPE and SwiGLU; idle_seconds of a step in which
// the device waited for the host, and gpu_queued, the share of a step in which it did not; with record_kernels
// gpu_busy, the seconds in which a kernel, copy or fill ran as a share of a step that is not recorded, and
// gpu_busy_recorded, as a share of the recorded ones; floor_seconds, the step's operations at the rate of this device's
// own bf16 products, and percent_of_floor; device and host bytes as predicted and as measured. Errors: those of the
// plan, the model and the engine; INVALID_ARGUMENT: options that do not go together.
absl::StatusOr<nlohmann::json> BenchTrain(const BenchTrainOptions& options);

}  // namespace longhaul
