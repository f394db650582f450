// longhaul-bench: sizes hardware. `train` runs the engine on a model or a shape, `kernels` its GEMMs.
#include <cstdio>
#include <iostream>
#include <optional>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "base/format.h"
#include "base/program/command_line.h"
#include "base/program/error_text.h"
#include "kernels/cuda_error.h"
#include "nlohmann/json.hpp"
#include "worker/bench_kernels.h"
#include "worker/bench_shapes.h"
#include "worker/bench_train.h"

namespace longhaul {
namespace {

// Most of everything that a flag may ask for: what a machine could still hold.
constexpr int64_t kMostTokens = int64_t{1} << 24;
constexpr int64_t kMostBatch = 4096;
constexpr int64_t kMostRank = 1024;
constexpr int64_t kMostSteps = 1'000'000;
constexpr int kMostThreads = 4096;

std::string Names() {
  std::string names;
  for (const std::string& name : BenchShapeNames()) names += (names.empty() ? "" : ", ") + name;
  return names;
}

int Print(const absl::StatusOr<nlohmann::json>& report, bool json) {
  if (!report.ok()) {
    std::cerr << program::DescribeError("longhaul-bench", report.status(), "`longhaul-bench --help` lists the flags");
    return 1;
  }
  if (json) {
    std::cout << report->dump() << "\n";
  } else if (report->is_array()) {
    for (const auto& row : *report) {
      std::cout << KernelRowText(row) << "\n";
    }
  } else {
    for (const auto& [key, value] : report->items()) std::cout << key << ": " << value.dump() << "\n";
  }
  return 0;
}

// "" leaves *bytes as it is. False, with a message, where it is no number of bytes.
bool ReadBytes(const char* flag, const std::string& text, int64_t* bytes) {
  if (text.empty()) return true;
  const absl::StatusOr<int64_t> parsed = ParseBytes(text);
  if (parsed.ok()) {
    *bytes = *parsed;
  } else {
    std::cerr << "longhaul-bench: " << flag << " " << parsed.status().message() << "\n";
  }
  return parsed.ok();
}

struct CapFlags {
  std::string host_bytes, host_cap, vram_cap;
};

void AddTrain(CLI::App* command, BenchTrainOptions* options, CapFlags* caps) {
  command->add_option("--model", options->model, "a GGUF file or a Hugging Face folder, instead of --shape");
  command->add_option("--shape", options->shape, "made-up weights of " + Names() + ", or of a config.json")
      ->capture_default_str();
  command->add_option("--tokens", options->tokens, "tokens a sequence")->check(CLI::Range(int64_t{1}, kMostTokens));
  command->add_option("--batch", options->batch, "sequences a micro-batch")->check(CLI::Range(int64_t{1}, kMostBatch));
  CLI::Option* const documents = command->add_option("--documents", options->documents,
                                                     "documents a sequence, of equal length: packed data has several");
  documents->check(CLI::Range(int64_t{1}, kMostTokens));
  command
      ->add_flag("--alpaca-like", options->alpaca_like,
                 "instead: many short documents and a few of up to 1,024 tokens, packed into sequences as a job's are")
      ->excludes(documents);
  command->add_option("--rank", options->rank, "LoRA rank")->check(CLI::Range(int64_t{1}, kMostRank));
  command->add_option("--base", options->base, "how the base is kept")->check(CLI::IsMember({"as_stored", "nf4"}));
  command->add_option("--share", options->share, "how much the plan takes")
      ->check(CLI::IsMember({"whole", "balanced", "minimum"}));
  CLI::Option* const host_cap = command->add_option(
      "--host-cap", caps->host_cap, "host memory that the plan may use, such as 1200MiB; default: what is available");
  command->add_option("--host-bytes", caps->host_bytes, "another name of --host-cap")->excludes(host_cap);
  command->add_option("--vram-cap", caps->vram_cap, "the same of a GPU's memory; default: all of it");
  command->add_flag("--record-kernels", options->record_kernels,
                    "on a GPU: 16 more steps whose kernels are recorded by CUPTI, one by one, for gpu_busy");
  command->add_flag("--host-checkpoints", options->host_checkpoints,
                    "layers' inputs wait in host memory even where a GPU has room for them");
  command->add_flag("--deterministic", options->deterministic, "the same bits in every run, on a GPU too");
  command->add_option("--steps", options->steps, "measured updates, after one that is not; 0: that one alone")
      ->check(CLI::Range(int64_t{0}, kMostSteps));
  command->add_option("--trained", options->trained, "share of the targets that train")->check(CLI::Range(0.0, 1.0));
  command->add_flag("--dropout", options->dropout, "a LoRA dropout of 0.1");
}

void AddKernels(CLI::App* command, BenchKernelsOptions* options) {
  command->add_option("--shape", options->shape, Names() + ", or a config.json")->capture_default_str();
  command->add_option("--tokens,--rows", options->tokens, "tokens a sequence")
      ->check(CLI::Range(int64_t{1}, kMostTokens));
  command->add_option("--batch", options->batch, "sequences")->check(CLI::Range(int64_t{1}, kMostBatch));
  command->add_option("--rank", options->rank, "LoRA rank of a GPU's linears")
      ->check(CLI::Range(int64_t{1}, kMostRank));
  command->add_flag("--deterministic", options->deterministic, "a GPU's kernels that give the same bits in every run");
  command->add_option("--device", options->device, "cpu, or cuda: the first device, an error where there is none")
      ->check(CLI::IsMember({"cpu", "cuda"}));
}

}  // namespace
}  // namespace longhaul

int main(int argc, char** argv) {
  using namespace longhaul;  // NOLINT: the whole program is here
  CLI::App app("Sizes hardware for Longhaul: speed and memory of the training engine on this machine.",
               "longhaul-bench");
  app.require_subcommand(1);
  std::string compute;
  CapFlags caps;
  int threads = 0;
  bool json = false;
  const auto common = [&](CLI::App* command, const std::vector<std::string>& types) {
    command->add_option("--compute", compute, "default: bf16 where there is one, else f32; fp8 is of Hopper GPUs")
        ->check(CLI::IsMember(types));
    command->add_option("--threads", threads, "default: all")->check(CLI::Range(1, kMostThreads));
    command->add_flag("--json", json, "JSON on standard output");
  };
  BenchTrainOptions train;
  CLI::App* const train_command = app.add_subcommand("train", "trains on random tokens and reports speed and memory");
  AddTrain(train_command, &train, &caps);
  train_command->add_option("--device", train.device, "cpu, or cuda: the first device")
      ->check(CLI::IsMember({"cpu", "cuda"}));
  common(train_command, {"f32", "bf16", "fp8"});
  BenchKernelsOptions kernels;
  CLI::App* const kernels_command =
      app.add_subcommand("kernels", "the kernels of a step, against the GEMM library alone");
  AddKernels(kernels_command, &kernels);
  common(kernels_command, {"f32", "bf16", "fp8"});
  if (const std::optional<int> code = program::ParseCommandLine(app, argc, argv)) return *code;

  kernels.compute = compute;
  kernels.threads = threads;
  train.compute = compute;
  train.threads = threads;
  if (!ReadBytes("--host-cap", caps.host_cap, &train.host_bytes)) return 2;
  if (!ReadBytes("--host-bytes", caps.host_bytes, &train.host_bytes)) return 2;
  if (!ReadBytes("--vram-cap", caps.vram_cap, &train.device_bytes)) return 2;
  try {
    return Print(kernels_command->parsed() ? BenchKernels(kernels) : BenchTrain(train), json);
  } catch (const kernels::CudaError& error) {
    std::cerr << "longhaul-bench: " << error.what() << "\n";
    return 1;
  }
}
