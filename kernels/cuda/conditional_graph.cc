#include "kernels/cuda/conditional_graph.h"

#include <memory>
#include <type_traits>
#include <vector>

#include "base/check.h"
#include "kernels/cuda_error.h"

namespace longhaul::kernels::cuda {
namespace {

void Check(cudaError_t error, const char* call) {
  if (error != cudaSuccess) throw CudaError("conditional graph", call, error, cudaGetErrorString(error));
}

// What the stream's capture has come to: the graph and the nodes that the next one follows.
struct Capture {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  cudaGraph_t graph = nullptr;
  std::vector<cudaGraphNode_t> last;
};

Capture CaptureOf(cudaStream_t stream) {
  Capture capture;
  const cudaGraphNode_t* last = nullptr;
  const cudaGraphEdgeData* edges = nullptr;
  size_t count = 0;
  Check(cudaStreamGetCaptureInfo(stream, &capture.status, nullptr, &capture.graph, &last, &edges, &count),
        "cudaStreamGetCaptureInfo");
  capture.last.assign(last, last + count);
  return capture;
}

template <typename T, cudaError_t (*Destroy)(T)>
struct Destroyer {
  void operator()(std::remove_pointer_t<T>* object) const { Destroy(object); }
};
using Graph = std::unique_ptr<std::remove_pointer_t<cudaGraph_t>, Destroyer<cudaGraph_t, cudaGraphDestroy>>;
using GraphExec =
    std::unique_ptr<std::remove_pointer_t<cudaGraphExec_t>, Destroyer<cudaGraphExec_t, cudaGraphExecDestroy>>;

}  // namespace

void RunConditionally(cudaStream_t stream, const std::function<void()>& work) {
  if (CaptureOf(stream).status == cudaStreamCaptureStatusActive) return work();
  Check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
  cudaGraph_t captured = nullptr;
  try {
    work();
  } catch (...) {
    // The stream must not stay in capture; the first error is the one to tell.
    cudaStreamEndCapture(stream, &captured);
    const Graph dropped(captured);
    throw;
  }
  Check(cudaStreamEndCapture(stream, &captured), "cudaStreamEndCapture");
  const Graph graph(captured);
  cudaGraphExec_t instantiated = nullptr;
  Check(cudaGraphInstantiate(&instantiated, graph.get(), 0), "cudaGraphInstantiate");
  // Destroyed here, freed when it has run.
  const GraphExec executable(instantiated);
  Check(cudaGraphLaunch(executable.get(), stream), "cudaGraphLaunch");
}

cudaGraphConditionalHandle MakeCondition(cudaStream_t stream) {
  const Capture capture = CaptureOf(stream);
  LH_CHECK(capture.status == cudaStreamCaptureStatusActive);
  cudaGraphConditionalHandle condition{};
  Check(cudaGraphConditionalHandleCreate(&condition, capture.graph, 0, cudaGraphCondAssignDefault),
        "cudaGraphConditionalHandleCreate");
  return condition;
}

void AddConditional(cudaStream_t stream, cudaGraphConditionalHandle condition, cudaGraphConditionalNodeType type,
                    cudaStream_t body_stream, const std::function<void()>& body) {
  const Capture capture = CaptureOf(stream);
  LH_CHECK(capture.status == cudaStreamCaptureStatusActive);
  cudaGraphNodeParams parameters{};
  parameters.type = cudaGraphNodeTypeConditional;
  parameters.conditional.handle = condition;
  parameters.conditional.type = type;
  parameters.conditional.size = 1;
  cudaGraphNode_t node = nullptr;
  Check(cudaGraphAddNode(&node, capture.graph, capture.last.data(), nullptr, capture.last.size(), &parameters),
        "cudaGraphAddNode");
  Check(cudaStreamBeginCaptureToGraph(body_stream, parameters.conditional.phGraph_out[0], nullptr, nullptr, 0,
                                      cudaStreamCaptureModeThreadLocal),
        "cudaStreamBeginCaptureToGraph");
  cudaGraph_t body_graph = nullptr;
  try {
    body();
  } catch (...) {
    cudaStreamEndCapture(body_stream, &body_graph);
    throw;
  }
  Check(cudaStreamEndCapture(body_stream, &body_graph), "cudaStreamEndCapture");
  Check(cudaStreamUpdateCaptureDependencies(stream, &node, nullptr, 1, cudaStreamSetCaptureDependencies),
        "cudaStreamUpdateCaptureDependencies");
}

}  // namespace longhaul::kernels::cuda
