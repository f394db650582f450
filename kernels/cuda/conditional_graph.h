// Work that the device decides on: parts of a stream's work that run, or are repeated, by a value that a kernel sets.
// CUDA has this in graphs only (conditional nodes), so the work is captured: into the caller's graph where its stream
// is being captured, else into one of our own that runs once.
#pragma once

#include <cuda_runtime_api.h>

#include <functional>

namespace longhaul::kernels::cuda {

// Runs `work`, which queues on `stream`, in such a way that it may use the functions below: as it is where the stream
// is being captured, else captured and launched there. Throws CudaError.
void RunConditionally(cudaStream_t stream, const std::function<void()>& work);

// A value for one conditional part of the graph that is being captured on `stream`, 0 until a kernel sets it
// (cudaGraphSetConditional).
cudaGraphConditionalHandle MakeCondition(cudaStream_t stream);

// Adds what `body` queues on `body_stream`, which is only captured, to the graph of `stream`: to run where the
// condition is not 0 (cudaGraphCondTypeIf), or while it is not (cudaGraphCondTypeWhile).
void AddConditional(cudaStream_t stream, cudaGraphConditionalHandle condition, cudaGraphConditionalNodeType type,
                    cudaStream_t body_stream, const std::function<void()>& body);

}  // namespace longhaul::kernels::cuda
