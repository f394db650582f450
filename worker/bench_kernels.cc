#include "worker/bench_kernels.h"

#include "base/env.h"
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
  return {{"name", name},
          {"rows", shape.rows},
          {"in", shape.in},
          {"out", shape.out},
          {"flops_per_s", ours},
          {"library_flops_per_s", library},
          {"library_ratio", ours / library}};
}

}  // namespace

absl::StatusOr<nlohmann::json> BenchKernels(const BenchKernelsOptions& options) {
  LH_ASSIGN_OR_RETURN(const ModelShape shape, BenchShape(options.shape));
  const bool bf16 = options.compute.empty() ? kernels::ProbeCpu().has_bf16 : options.compute == "bf16";
  const auto type = bf16 ? kernels::GemmType::kBF16 : kernels::GemmType::kF32;
  const int threads = options.threads > 0 ? options.threads : HostCpuThreads();
  static constexpr const char* kNames[kFusedLinears] = {"qkv", "o", "gate_up", "down"};
  nlohmann::json rates = nlohmann::json::array();
  for (int i = 0; i < kFusedLinears; ++i) {
    const int64_t out = FusedOut(shape, static_cast<FusedLinear>(i));
    const int64_t in = FusedIn(shape, static_cast<FusedLinear>(i));
    // The gradient with respect to the input is a product of the same kind, with W the other way round.
    rates.push_back(Rate(std::string(kNames[i]) + " forward", threads, type, {options.rows, in, out}));
    rates.push_back(Rate(std::string(kNames[i]) + " backward", threads, type, {options.rows, out, in}));
  }
  rates.push_back(Rate("head forward", threads, type, {options.rows, shape.hidden, shape.vocab}));
  rates.push_back(Rate("head backward", threads, type, {options.rows, shape.vocab, shape.hidden}));
  return rates;
}

}  // namespace longhaul
