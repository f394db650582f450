#include "kernels/cpu/cpu_exec.h"

#include <fstream>
#include <new>
#include <string>
#include <utility>

#include "base/check.h"

namespace longhaul::kernels {
namespace {

constexpr std::align_val_t kBufferAlignment{64};

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

GrowingBuffer::~GrowingBuffer() { ::operator delete(data_, kBufferAlignment); }

GrowingBuffer::GrowingBuffer(GrowingBuffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

void* GrowingBuffer::Reserve(int64_t bytes) {
  if (bytes <= bytes_) return data_;
  ::operator delete(std::exchange(data_, nullptr), kBufferAlignment);
  bytes_ = 0;
  data_ = ::operator new(static_cast<size_t>(bytes), kBufferAlignment);
  bytes_ = bytes;
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

}  // namespace longhaul::kernels
