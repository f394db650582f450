#include "kernels/exec.h"

#include <omp.h>
#include <sched.h>

#include <string>
#include <vector>

#include "base/check.h"
#include "base/error.h"
#include "kernels/cpu/cpu_exec.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/op_table.h"

namespace longhaul::kernels {
namespace {

std::vector<int> AllowedProcessors() {
  cpu_set_t mask;
  CPU_ZERO(&mask);
  std::vector<int> processors;
  if (sched_getaffinity(0, sizeof(mask), &mask) != 0) return processors;
  for (int i = 0; i < CPU_SETSIZE; ++i) {
    if (CPU_ISSET(i, &mask)) processors.push_back(i);
  }
  return processors;
}

void PinThreads(const std::vector<int>& processors, int threads) {
#pragma omp parallel num_threads(threads)
  {
    cpu_set_t mask;
    CPU_ZERO(&mask);
    CPU_SET(processors[static_cast<size_t>(omp_get_thread_num())], &mask);
    // A refusal leaves the thread where the kernel puts it: slower, not wrong.
    sched_setaffinity(0, sizeof(mask), &mask);
  }
}

}  // namespace

Exec::Exec() = default;
Exec::~Exec() = default;

CpuExec& Exec::cpu() const {
  LH_CHECK(cpu_ != nullptr);
  return *cpu_;
}

CudaExec& Exec::cuda() const {
  LH_CHECK(cuda_ != nullptr);
  return *cuda_;
}

void Exec::Upload(void* to, const void* from, int64_t bytes) const { ops_->upload(*this, to, from, bytes); }
void Exec::Download(void* to, const void* from, int64_t bytes) const { ops_->download(*this, to, from, bytes); }
void Exec::Synchronize() const { ops_->synchronize(*this); }

absl::StatusOr<std::unique_ptr<Exec>> Exec::CreateCpu(int threads, GemmType gemm_type, bool pin) {
  if (threads < 1) return InvalidField("threads", "is " + std::to_string(threads) + "; must be at least 1");
  const CpuFacts facts = ProbeCpu();
  if (gemm_type == GemmType::kBF16 && !facts.has_bf16) {
    return MakeError(absl::StatusCode::kFailedPrecondition, "NO_BF16",
                     "bf16 GEMMs need AVX512_BF16; this CPU (" + facts.model_name + ") has " + facts.isa + ": use f32");
  }
  const std::vector<int> processors = AllowedProcessors();
  if (pin && static_cast<size_t>(threads) > processors.size()) {
    return MakeError(absl::StatusCode::kFailedPrecondition, "TOO_FEW_PROCESSORS",
                     std::to_string(threads) + " threads cannot be pinned to the " + std::to_string(processors.size()) +
                         " processors of the affinity mask");
  }
  // The library sizes its own regions (packing weights) by this; ours pass their count.
  omp_set_num_threads(threads);
  omp_set_dynamic(0);
  std::unique_ptr<Exec> exec(new Exec());
  exec->threads_ = threads;
  exec->gemm_type_ = gemm_type;
  exec->ops_ = &cpu::Ops();
  exec->cpu_ = std::make_unique<CpuExec>(threads);
  exec->cpu_->facts = facts;
  if (pin) PinThreads(processors, threads);
  return exec;
}

}  // namespace longhaul::kernels
