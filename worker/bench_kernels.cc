#include "worker/bench_kernels.h"

#include <cstdio>

#include "base/env.h"
#include "base/error.h"
#include "base/status_macros.h"
#include "kernels/exec.h"
#include "model/plan_layout.h"
#include "nlohmann/json.hpp"
#include "worker/bench_shapes.h"

namespace longhaul {
namespace {

nlohmann::json Rate(const std::string& name, int threads, kernels::GemmType type, const kernels::GemmRateShape& shape) {
  const double ours = kernels::MeasureGemmFlops(threads, type, shape);
  const double library = kernels::MeasureLibraryGemmFlops(threads, type, shape);
  const double flops =
      2.0 * static_cast<double>(shape.rows) * static_cast<double>(shape.in) * static_cast<double>(shape.out);
  return {{"name", name},
          {"rows", shape.rows},
          {"in", shape.in},
          {"out", shape.out},
          {"seconds", flops / ours},
          {"flops_per_s", ours},
          {"library_flops_per_s", library},
          {"library_ratio", ours / library}};
}

absl::StatusOr<nlohmann::json> BenchCpuKernels(const BenchKernelsOptions& options) {
  LH_ASSIGN_OR_RETURN(const ModelShape shape, BenchShape(options.shape));
  const kernels::CpuFacts cpu = kernels::ProbeCpu();
  const bool bf16 = options.compute.empty() ? cpu.has_bf16 : options.compute == "bf16";
  const auto type = bf16 ? kernels::GemmType::kBF16 : kernels::GemmType::kF32;
  const int threads = options.threads > 0 ? options.threads : HostCpuThreads();
  const int64_t rows = options.rows();
  static constexpr const char* kNames[kFusedLinears] = {"qkv", "o", "gate_up", "down"};
  nlohmann::json rates = nlohmann::json::array();
  rates.push_back({{"name", "device"},
                   {"device", cpu.model_name + ", " + cpu.gemm_library + ", " + std::to_string(threads) + " threads, " +
                                  (bf16 ? "bf16" : "f32")}});
  for (int i = 0; i < kFusedLinears; ++i) {
    const int64_t out = FusedOut(shape, static_cast<FusedLinear>(i));
    const int64_t in = FusedIn(shape, static_cast<FusedLinear>(i));
    // The gradient with respect to the input is a product of the same kind, with W the other way round.
    rates.push_back(Rate(std::string(kNames[i]) + " forward", threads, type, {rows, in, out}));
    rates.push_back(Rate(std::string(kNames[i]) + " backward", threads, type, {rows, out, in}));
  }
  rates.push_back(Rate("head forward", threads, type, {rows, shape.hidden, shape.vocab}));
  rates.push_back(Rate("head backward", threads, type, {rows, shape.vocab, shape.hidden}));
  return rates;
}

// "712 TFLOP/s", "41.2 GFLOP/s".
std::string FlopsText(double flops_per_s) {
  char text[48];
  const bool large = flops_per_s >= 1e12;
  std::snprintf(text, sizeof text, "%.4g %s/s", flops_per_s / (large ? 1e12 : 1e9), large ? "TFLOP" : "GFLOP");
  return text;
}

}  // namespace

absl::StatusOr<nlohmann::json> BenchKernels(const BenchKernelsOptions& options) {
  const bool gpu = options.device == "cuda";
  if (options.compute == (gpu ? "f32" : "fp8")) {
    return InvalidField("--compute",
                        "is " + options.compute + "; a " + (gpu ? "GPU has bf16 and fp8" : "CPU f32 and bf16"));
  }
  return gpu ? BenchCudaKernels(options) : BenchCpuKernels(options);
}

std::string KernelRowText(const nlohmann::json& row) {
  if (row.contains("device")) return row["device"].get<std::string>();
  char text[200];
  std::snprintf(text, sizeof text, "%-22s", row["name"].get<std::string>().c_str());
  std::string line = text;
  if (row.contains("rows")) {
    std::snprintf(text, sizeof text, " %6lld x %6lld -> %6lld", row["rows"].get<long long>(),
                  row["in"].get<long long>(), row["out"].get<long long>());
    line += text;
  }
  std::snprintf(text, sizeof text, "  %9.1f us", row["seconds"].get<double>() * 1e6);
  line += text;
  if (row.contains("flops_per_s")) line += "  " + FlopsText(row["flops_per_s"].get<double>());
  if (row.contains("library_ratio")) {
    std::snprintf(text, sizeof text, "  %3.0f%% of the library's ", 100 * row["library_ratio"].get<double>());
    line += text + FlopsText(row["library_flops_per_s"].get<double>());
  }
  if (row.contains("copy_ratio")) {
    std::snprintf(text, sizeof text, "  %.0f GB/s  %3.0f%% of a copy's %.0f", row["bytes_per_s"].get<double>() / 1e9,
                  100 * row["copy_ratio"].get<double>(), row["copy_bytes_per_s"].get<double>() / 1e9);
    line += text;
  }
  return line;
}

}  // namespace longhaul
