// Where ops run: the backend, its threads or stream, and what it caches. One per trainer, handed to every op.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace longhaul::kernels {

enum class Backend { kCpu, kCuda };

// What the CPU's GEMMs multiply in. Accumulation is always f32 (f64 for f64 operands).
enum class GemmType { kF32, kBF16 };

// Facts of this CPU that the plan and a bit-identical resume depend on.
struct CpuFacts {
  std::string isa;        // "sse41", "avx", "avx2", "avx512", "avx512_bf16", "avx512_amx": what oneDNN uses
  bool has_bf16 = false;  // bf16 GEMMs are faster than f32 here
  // Frozen weights are fastest in a packed layout, one copy a direction (the library's blocks, or our panels; see
  // FrozenWeight). The plain layout, one copy for both, always works too and costs 4 to 40% of the GEMMs' rate.
  bool packs_weights = false;
  std::string model_name;    // "AMD EPYC ..."
  std::string gemm_library;  // "oneDNN 2.6.3"
};
CpuFacts ProbeCpu();

// A GEMM with a frozen weight: x [rows, in] times W^T, W [out, in].
struct GemmRateShape {
  int64_t rows = 512;
  int64_t in = 576;
  int64_t out = 1536;
};
// Measured rate of this CPU on random data, in FLOP/s, about 0.2 s of work: through FrozenForward, as the engine calls
// it; and of the GEMM library alone, called once for all rows with its own threads and operands already of its type.
double MeasureGemmFlops(int threads, GemmType type, const GemmRateShape& shape = {});
double MeasureLibraryGemmFlops(int threads, GemmType type, const GemmRateShape& shape = {});

struct CpuExec;   // kernels/cpu/cpu_exec.h: oneDNN engine, stream and cached primitives
struct CudaExec;  // kernels/cuda/cuda_exec.h: device, streams, scratch
struct OpTable;   // kernels/op_table.h: the backend's body of every op

class Exec {
 public:
  // `threads` worker threads, pinned to the first `threads` processors of our affinity mask if `pin`.
  // The calling thread is the first of them: it must be the one that calls the ops. Threads that it starts later
  // inherit its pin. INVALID_ARGUMENT: threads < 1. FAILED_PRECONDITION: reason NO_BF16 where the CPU has no bf16
  // GEMMs, TOO_FEW_PROCESSORS where `pin` asks for more than the mask has.
  static absl::StatusOr<std::unique_ptr<Exec>> CreateCpu(int threads, GemmType gemm_type, bool pin);
  // On CUDA device `device` (0 is the first that the driver shows), which becomes the calling thread's current device:
  // that thread is the one that calls the ops. Defined by longhaul_kernels_cuda alone (cuda/cuda_exec.cc, or
  // cuda/no_cuda.cc where the build has no CUDA): link it where CUDA is wanted. UNAVAILABLE: reason NO_CUDA (build),
  // NO_CUDA_DEVICE, CUDA_DRIVER_TOO_OLD, DEVICE_MEMORY_TAKEN (other programs leave not even a context's).
  // FAILED_PRECONDITION: CUDA_DEVICE_TOO_OLD (no bf16), NO_CUDA_KERNELS (this build has no code for the device).
  static absl::StatusOr<std::unique_ptr<Exec>> CreateCuda(int device);
  ~Exec();

  Backend backend() const { return backend_; }
  int threads() const { return threads_; }
  GemmType gemm_type() const { return gemm_type_; }
  const OpTable& ops() const { return *ops_; }
  CpuExec& cpu() const;    // REQUIRES: backend() == kCpu
  CudaExec& cuda() const;  // REQUIRES: backend() == kCuda

  // Copies between the host and memory of this Exec, in the order of the ops. CPU: memcpy. CUDA: queued; pinned host
  // memory must stay as it is until then, pageable memory is read before Upload returns. A Download's bytes may be
  // read after Synchronize.
  void Upload(void* to, const void* from, int64_t bytes) const;
  void Download(void* to, const void* from, int64_t bytes) const;
  // Returns when all ops and copies so far are done. CUDA: throws CudaError where one of them failed.
  void Synchronize() const;

 private:
  Exec();
  Backend backend_ = Backend::kCpu;
  int threads_ = 1;
  GemmType gemm_type_ = GemmType::kF32;
  const OpTable* ops_ = nullptr;
  std::unique_ptr<CpuExec> cpu_;
  // Deleted by the library that made it: this one does not know the type.
  std::unique_ptr<CudaExec, void (*)(CudaExec*)> cuda_{nullptr, nullptr};
};

}  // namespace longhaul::kernels
