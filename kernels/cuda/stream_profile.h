// Points in a stream, and the time of what is queued by the part of a step that it belongs to.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "kernels/cuda/cuda_engine.h"
#include "kernels/cuda/cuda_exec.h"

namespace longhaul::kernels::cuda {

class StreamProfile {
 public:
  explicit StreamProfile(const CudaStream& stream) : stream_(stream) {}

  void Mark(size_t point);
  double SecondsBetween(size_t from, size_t to);
  void WaitFor(size_t point);

  void Begin();
  std::vector<CudaEngine::Part> End();
  bool is_on() const { return is_on_; }

  // Times what is queued on the stream, or on `beside`, while it lives, where the profile is on.
  class Scope {
   public:
    Scope(StreamProfile* profile, const char* part, const CudaStream* beside = nullptr);
    ~Scope();
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    StreamProfile* profile_;  // null where it is off
    const CudaStream* stream_ = nullptr;
    size_t span_ = 0;
  };

 private:
  struct Span {
    const char* part;
    std::unique_ptr<CudaEvent> begun, ended;
  };
  const CudaStream& stream_;
  std::map<size_t, CudaEvent> points_;
  std::vector<Span> spans_;
  bool is_on_ = false;
};

}  // namespace longhaul::kernels::cuda
