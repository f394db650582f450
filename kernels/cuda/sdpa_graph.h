// cuDNN's graph of one attention pass, behind a seam: sdpa_graph.cc is the only file that includes the library's C++
// front end, which takes the compiler half a minute.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "kernels/cuda/sdpa.h"

namespace longhaul::kernels::cuda {

class SdpaGraph {
 public:
  // UNIMPLEMENTED, reason SDPA_UNSUPPORTED, with the library's message.
  static absl::StatusOr<std::unique_ptr<SdpaGraph>> Build(const Cudnn& cudnn, const SdpaShape& shape, bool backward);
  ~SdpaGraph();
  SdpaGraph(const SdpaGraph&) = delete;
  SdpaGraph& operator=(const SdpaGraph&) = delete;

  int64_t workspace_bytes() const { return workspace_bytes_; }
  const std::string& name() const { return name_; }  // engine and knobs: "eng6_k24=26"
  // On the handle's stream. Throws CudaError.
  void Execute(const Cudnn& cudnn, const SdpaBuffers& buffers, void* workspace) const;

 private:
  SdpaGraph();
  struct Impl;
  std::unique_ptr<Impl> impl_;
  int64_t workspace_bytes_ = 0;
  std::string name_;
};

}  // namespace longhaul::kernels::cuda
