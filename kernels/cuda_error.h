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

class CudaError : public std::runtime_error {
 public:
  // op: what the engine was doing ("RmsNorm"); call: the CUDA function ("cudaLaunchKernel"); code, text: its answer.
  CudaError(const std::string& op, const std::string& call, int code, const std::string& text)
      : std::runtime_error(op + ": " + call + " failed with CUDA error " + std::to_string(code) + ": " + text),
        op_(op),
        call_(call),
        code_(code) {}
  const std::string& op() const { return op_; }
  const std::string& call() const { return call_; }
  int code() const { return code_; }

 private:
  std::string op_, call_;
  int code_;
};

}  // namespace longhaul::kernels
