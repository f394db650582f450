#include "kernels/cpu/cpu_exec.h"

#include <chrono>
#include <cstdlib>
#include <fstream>
#include <string>
#include <utility>

#include "base/check.h"

namespace longhaul::kernels {
namespace {

std::string CpuModelName() {
  std::ifstream cpuinfo("/proc/cpuinfo");
  std::string line;
  while (std::getline(cpuinfo, line)) {
    if (line.rfind("model name", 0) != 0) continue;
    const size_t colon = line.find(": ");
    if (colon != std::string::npos) return line.substr(colon + 2);
  }
  return "unknown";
}

// The library's names are bit sets: a wider one contains the narrower.
std::string IsaName(unsigned isa) {
  const auto has = [isa](dnnl_cpu_isa_t level) { return (isa & static_cast<unsigned>(level)) == level; };
  if (has(dnnl_cpu_isa_avx512_core_amx)) return "avx512_amx";
  if (has(dnnl_cpu_isa_avx512_core_bf16)) return "avx512_bf16";
  if (has(dnnl_cpu_isa_avx512_core)) return "avx512";
  if (has(dnnl_cpu_isa_avx2)) return "avx2";
  if (has(dnnl_cpu_isa_avx)) return "avx";
  return "sse41";
}

}  // namespace

GrowingBuffer::~GrowingBuffer() { std::free(data_); }

GrowingBuffer::GrowingBuffer(GrowingBuffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

void* GrowingBuffer::Reserve(int64_t bytes) {
  if (bytes <= bytes_) return data_;
  std::free(data_);
  bytes_ = (bytes + 63) / 64 * 64;
  data_ = std::aligned_alloc(64, static_cast<size_t>(bytes_));
  LH_CHECK(data_ != nullptr, "no memory for " + std::to_string(bytes) + " bytes of staging");
  return data_;
}

CpuExec::CpuExec(int thread_count) : engine(dnnl::engine::kind::cpu, 0) {
  for (int i = 0; i < thread_count; ++i) threads.push_back({dnnl::stream(engine), {}, {}});
  // The first micro-batch may have few targets and a later one more: no step allocates.
  constexpr int64_t kSumsBytes = 64 << 10;
  sums.Reserve(kSumsBytes);
}

CpuFacts ProbeCpu() {
  static const CpuFacts facts = [] {
    CpuFacts result;
    const auto isa = static_cast<unsigned>(dnnl_get_effective_cpu_isa());
    result.isa = IsaName(isa);
    result.has_bf16 = (isa & dnnl_cpu_isa_avx512_core_bf16) == dnnl_cpu_isa_avx512_core_bf16;
    result.packs_weights = true;
    result.model_name = CpuModelName();
    const dnnl_version_t* version = dnnl_version();
    result.gemm_library = "oneDNN " + std::to_string(version->major) + "." + std::to_string(version->minor) + "." +
                          std::to_string(version->patch);
    return result;
  }();
  return facts;
}

double MeasureGemmFlops(int threads, GemmType type) {
  constexpr int64_t kRows = 512, kIn = 576, kOut = 1536;
  constexpr double kBudgetSeconds = 0.2;
  auto created = Exec::CreateCpu(threads, type, /*pin=*/false);
  LH_CHECK(created.ok(), std::string(created.status().message()));
  const Exec& exec = **created;

  // Random operands: on zeros some processors clock higher.
  std::vector<float> x(kRows * kIn), w(kOut * kIn), y(kRows * kOut);
  uint32_t state = 1;
  const auto next = [&state] {
    state = state * 1664525u + 1013904223u;
    return static_cast<float>(static_cast<int32_t>(state)) * 0x1p-31f;
  };
  for (float& value : x) value = next();
  for (float& value : w) value = next();

  const bool bf16 = type == GemmType::kBF16;
  std::vector<uint8_t> packed(static_cast<size_t>(PackedWeightBytes(exec, kOut, kIn, false)));
  const FrozenWeight weight{kOut, kIn, bf16 ? DType::kBF16 : DType::kF32, true, packed.data(), nullptr};
  PackWeight(exec, MakeTensor(w.data(), DType::kF32, kOut, kIn), weight);
  std::vector<uint8_t> scratch(static_cast<size_t>(FrozenGemmScratchBytes(type, kRows, kOut, kIn)));
  const auto run = [&] {
    FrozenForward(exec, MakeTensor(x.data(), DType::kF32, kRows, kIn), weight, 0,
                  MakeTensor(y.data(), DType::kF32, kRows, kOut), scratch.data());
  };
  run();
  const auto start = std::chrono::steady_clock::now();
  double best_seconds = 1e30;
  for (double spent = 0; spent < kBudgetSeconds;) {
    const auto from = std::chrono::steady_clock::now();
    run();
    const auto now = std::chrono::steady_clock::now();
    best_seconds = std::min(best_seconds, std::chrono::duration<double>(now - from).count());
    spent = std::chrono::duration<double>(now - start).count();
  }
  return 2.0 * kRows * kIn * kOut / best_seconds;
}

}  // namespace longhaul::kernels
