// A CUDA call that failed. Thrown by the CUDA backend and by nothing else; a context is not usable afterwards, so the
// trainer reports it with its step and ends.
#pragma once

#include <cstdlib>
#include <stdexcept>
#include <string>
#include <string_view>

namespace longhaul::kernels {

// CUDA_LAUNCH_BLOCKING=1 in the environment: a launch returns when its kernel has ended, so that a fault is seen by the
// op that made it. Without, whatever call comes next sees it, be it another op's.
inline bool CudaLaunchesBlock() {
  const char* const asked = std::getenv("CUDA_LAUNCH_BLOCKING");
  return asked != nullptr && std::string_view(asked) == "1";
}

// Whose memory had no room, where that is why a call failed.
enum class CudaShortage { kNone, kDevice, kHost };

class CudaError : public std::runtime_error {
 public:
  // op: what the engine was doing ("RmsNorm"); call: the CUDA function ("cudaLaunchKernel"); code, text: its answer.
  // Of the runtime, by whose codes the shortage is known.
  CudaError(const std::string& op, const std::string& call, int code, const std::string& text)
      : CudaError(op, call, code, text,
                  code == kCudaErrorMemoryAllocation ? CudaShortage::kDevice : CudaShortage::kNone) {}
  // Of a library, whose codes mean other things.
  CudaError(const std::string& op, const std::string& call, int code, const std::string& text, CudaShortage shortage)
      : std::runtime_error(op + ": " + call + " failed with CUDA error " + std::to_string(code) + ": " + text),
        op_(op),
        call_(call),
        code_(code),
        shortage_(shortage) {}
  const std::string& op() const { return op_; }
  const std::string& call() const { return call_; }
  int code() const { return code_; }
  CudaShortage shortage() const { return shortage_; }

 private:
  static constexpr int kCudaErrorMemoryAllocation = 2;

  std::string op_, call_;
  int code_;
  CudaShortage shortage_;
};

}  // namespace longhaul::kernels
