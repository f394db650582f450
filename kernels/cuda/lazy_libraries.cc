#include "kernels/cuda/lazy_libraries.h"

#include <cublasLt.h>
#include <cudnn.h>
#include <dlfcn.h>
#include <nvrtc.h>

#include <string>

#include "base/error.h"

namespace longhaul::kernels::cuda {
namespace {

// A shared library, loaded once and for good: what it registered with the driver outlives main.
class LazyLibrary {
 public:
  explicit LazyLibrary(const char* name) {
    for (const std::string& path : {std::string(name), std::string("/usr/local/cuda/lib64/") + name}) {
      handle_ = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
      if (handle_ != nullptr) return;
      const char* const why = dlerror();
      errors_ += (errors_.empty() ? "" : "; ") + std::string(why != nullptr ? why : path + ": unknown error");
    }
  }
  void* Find(const char* function) const { return handle_ != nullptr ? dlsym(handle_, function) : nullptr; }
  bool loaded() const { return handle_ != nullptr; }
  const std::string& errors() const { return errors_; }

 private:
  void* handle_ = nullptr;
  std::string errors_;
};

const LazyLibrary& CublasLt() {
  static const LazyLibrary& library = *new LazyLibrary("libcublasLt.so.13");
  return library;
}
const LazyLibrary& CudnnLibrary() {
  static const LazyLibrary& library = *new LazyLibrary("libcudnn.so.9");
  return library;
}
const LazyLibrary& Nvrtc() {
  static const LazyLibrary& library = *new LazyLibrary("libnvrtc.so.13");
  return library;
}

// Calls the library's function of the same type as ours; `missing` where there is none.
template <auto Function, typename Result, typename... Arguments>
Result Call(const LazyLibrary& library, const char* name, Result missing, Arguments... arguments) {
  static const auto function = reinterpret_cast<decltype(Function)>(library.Find(name));
  return function != nullptr ? function(arguments...) : missing;
}

}  // namespace

absl::Status LoadCudaLibraries() {
  std::string missing;
  for (const LazyLibrary* library : {&CublasLt(), &CudnnLibrary(), &Nvrtc()}) {
    if (!library->loaded()) missing += (missing.empty() ? "" : "; ") + library->errors();
  }
  if (missing.empty()) return absl::OkStatus();
  return MakeError(absl::StatusCode::kUnavailable, "CUDA_LIBRARY_MISSING",
                   "CUDA needs cuBLASLt 13, NVRTC 13 and cuDNN 9, which were not all found: " + missing +
                       "; install them, or put their folder into LD_LIBRARY_PATH");
}

}  // namespace longhaul::kernels::cuda

using longhaul::kernels::cuda::Call;
using longhaul::kernels::cuda::CublasLt;
using longhaul::kernels::cuda::CudnnLibrary;
using longhaul::kernels::cuda::Nvrtc;

extern "C" {

// ---- cuBLASLt ----

constexpr cublasStatus_t kNoCublasLt = CUBLAS_STATUS_NOT_INITIALIZED;

cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) {
  return Call<&cublasLtCreate>(CublasLt(), __func__, kNoCublasLt, handle);
}
cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) {
  return Call<&cublasLtDestroy>(CublasLt(), __func__, kNoCublasLt, handle);
}
const char* cublasLtGetStatusString(cublasStatus_t status) {
  return Call<&cublasLtGetStatusString>(CublasLt(), __func__, "libcublasLt.so.13 was not found", status);
}
size_t cublasLtGetVersion() { return Call<&cublasLtGetVersion>(CublasLt(), __func__, size_t{0}); }
cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t description, const void* alpha,
                              const void* a, cublasLtMatrixLayout_t a_layout, const void* b,
                              cublasLtMatrixLayout_t b_layout, const void* beta, const void* c,
                              cublasLtMatrixLayout_t c_layout, void* d, cublasLtMatrixLayout_t d_layout,
                              const cublasLtMatmulAlgo_t* algorithm, void* workspace, size_t workspace_bytes,
                              cudaStream_t stream) {
  return Call<&cublasLtMatmul>(CublasLt(), __func__, kNoCublasLt, handle, description, alpha, a, a_layout, b, b_layout,
                               beta, c, c_layout, d, d_layout, algorithm, workspace, workspace_bytes, stream);
}
cublasStatus_t cublasLtMatmulAlgoCheck(cublasLtHandle_t handle, cublasLtMatmulDesc_t description,
                                       cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c,
                                       cublasLtMatrixLayout_t d, const cublasLtMatmulAlgo_t* algorithm,
                                       cublasLtMatmulHeuristicResult_t* result) {
  return Call<&cublasLtMatmulAlgoCheck>(CublasLt(), __func__, kNoCublasLt, handle, description, a, b, c, d, algorithm,
                                        result);
}
cublasStatus_t cublasLtMatmulAlgoConfigGetAttribute(const cublasLtMatmulAlgo_t* algorithm,
                                                    cublasLtMatmulAlgoConfigAttributes_t attribute, void* value,
                                                    size_t bytes, size_t* written) {
  return Call<&cublasLtMatmulAlgoConfigGetAttribute>(CublasLt(), __func__, kNoCublasLt, algorithm, attribute, value,
                                                     bytes, written);
}
cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t description,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t preference, int wanted,
                                              cublasLtMatmulHeuristicResult_t* results, int* found) {
  return Call<&cublasLtMatmulAlgoGetHeuristic>(CublasLt(), __func__, kNoCublasLt, handle, description, a, b, c, d,
                                               preference, wanted, results, found);
}
// Create and Destroy of descriptions, preferences and layouts are inline functions over these in some versions'
// headers.
cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* description, cublasComputeType_t compute,
                                        cudaDataType_t scale) {
  return Call<&cublasLtMatmulDescCreate>(CublasLt(), __func__, kNoCublasLt, description, compute, scale);
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t description) {
  return Call<&cublasLtMatmulDescDestroy>(CublasLt(), __func__, kNoCublasLt, description);
}
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t description,
                                              cublasLtMatmulDescAttributes_t attribute, const void* value,
                                              size_t bytes) {
  return Call<&cublasLtMatmulDescSetAttribute>(CublasLt(), __func__, kNoCublasLt, description, attribute, value, bytes);
}
cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* preference) {
  return Call<&cublasLtMatmulPreferenceCreate>(CublasLt(), __func__, kNoCublasLt, preference);
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
  return Call<&cublasLtMatmulPreferenceDestroy>(CublasLt(), __func__, kNoCublasLt, preference);
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                    cublasLtMatmulPreferenceAttributes_t attribute, const void* value,
                                                    size_t bytes) {
  return Call<&cublasLtMatmulPreferenceSetAttribute>(CublasLt(), __func__, kNoCublasLt, preference, attribute, value,
                                                     bytes);
}
cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* layout, cudaDataType type, uint64_t rows,
                                          uint64_t cols, int64_t stride) {
  return Call<&cublasLtMatrixLayoutCreate>(CublasLt(), __func__, kNoCublasLt, layout, type, rows, cols, stride);
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
  return Call<&cublasLtMatrixLayoutDestroy>(CublasLt(), __func__, kNoCublasLt, layout);
}

// ---- cuDNN ----

constexpr cudnnStatus_t kNoCudnn = CUDNN_STATUS_NOT_INITIALIZED;

size_t cudnnGetVersion() { return Call<&cudnnGetVersion>(CudnnLibrary(), __func__, size_t{0}); }
const char* cudnnGetErrorString(cudnnStatus_t status) {
  return Call<&cudnnGetErrorString>(CudnnLibrary(), __func__, "libcudnn.so.9 was not found", status);
}
void cudnnGetLastErrorString(char* message, size_t bytes) {
  static const auto function =
      reinterpret_cast<decltype(&cudnnGetLastErrorString)>(CudnnLibrary().Find("cudnnGetLastErrorString"));
  if (function != nullptr) return function(message, bytes);
  if (bytes > 0) message[0] = '\0';
}
cudnnStatus_t cudnnCreate(cudnnHandle_t* handle) {
  return Call<&cudnnCreate>(CudnnLibrary(), __func__, kNoCudnn, handle);
}
cudnnStatus_t cudnnDestroy(cudnnHandle_t handle) {
  return Call<&cudnnDestroy>(CudnnLibrary(), __func__, kNoCudnn, handle);
}
cudnnStatus_t cudnnSetStream(cudnnHandle_t handle, cudaStream_t stream) {
  return Call<&cudnnSetStream>(CudnnLibrary(), __func__, kNoCudnn, handle, stream);
}
cudnnStatus_t cudnnGetStream(cudnnHandle_t handle, cudaStream_t* stream) {
  return Call<&cudnnGetStream>(CudnnLibrary(), __func__, kNoCudnn, handle, stream);
}
cudnnStatus_t cudnnBackendCreateDescriptor(cudnnBackendDescriptorType_t type, cudnnBackendDescriptor_t* descriptor) {
  return Call<&cudnnBackendCreateDescriptor>(CudnnLibrary(), __func__, kNoCudnn, type, descriptor);
}
cudnnStatus_t cudnnBackendDestroyDescriptor(cudnnBackendDescriptor_t descriptor) {
  return Call<&cudnnBackendDestroyDescriptor>(CudnnLibrary(), __func__, kNoCudnn, descriptor);
}
cudnnStatus_t cudnnBackendFinalize(cudnnBackendDescriptor_t descriptor) {
  return Call<&cudnnBackendFinalize>(CudnnLibrary(), __func__, kNoCudnn, descriptor);
}
cudnnStatus_t cudnnBackendSetAttribute(cudnnBackendDescriptor_t descriptor, cudnnBackendAttributeName_t name,
                                       cudnnBackendAttributeType_t type, int64_t count, const void* elements) {
  return Call<&cudnnBackendSetAttribute>(CudnnLibrary(), __func__, kNoCudnn, descriptor, name, type, count, elements);
}
cudnnStatus_t cudnnBackendGetAttribute(cudnnBackendDescriptor_t const descriptor, cudnnBackendAttributeName_t name,
                                       cudnnBackendAttributeType_t type, int64_t wanted, int64_t* count,
                                       void* elements) {
  return Call<&cudnnBackendGetAttribute>(CudnnLibrary(), __func__, kNoCudnn, descriptor, name, type, wanted, count,
                                         elements);
}
cudnnStatus_t cudnnBackendExecute(cudnnHandle_t handle, cudnnBackendDescriptor_t plan, cudnnBackendDescriptor_t pack) {
  return Call<&cudnnBackendExecute>(CudnnLibrary(), __func__, kNoCudnn, handle, plan, pack);
}

// ---- NVRTC: referred to by the front end, for engines that we do not use ----

constexpr nvrtcResult kNoNvrtc = NVRTC_ERROR_INTERNAL_ERROR;

nvrtcResult nvrtcCreateProgram(nvrtcProgram* program, const char* source, const char* name, int headers,
                               const char* const* header_sources, const char* const* header_names) {
  return Call<&nvrtcCreateProgram>(Nvrtc(), __func__, kNoNvrtc, program, source, name, headers, header_sources,
                                   header_names);
}
nvrtcResult nvrtcDestroyProgram(nvrtcProgram* program) {
  return Call<&nvrtcDestroyProgram>(Nvrtc(), __func__, kNoNvrtc, program);
}
nvrtcResult nvrtcCompileProgram(nvrtcProgram program, int count, const char* const* options) {
  return Call<&nvrtcCompileProgram>(Nvrtc(), __func__, kNoNvrtc, program, count, options);
}
nvrtcResult nvrtcGetCUBIN(nvrtcProgram program, char* code) {
  return Call<&nvrtcGetCUBIN>(Nvrtc(), __func__, kNoNvrtc, program, code);
}
nvrtcResult nvrtcGetCUBINSize(nvrtcProgram program, size_t* bytes) {
  return Call<&nvrtcGetCUBINSize>(Nvrtc(), __func__, kNoNvrtc, program, bytes);
}
nvrtcResult nvrtcGetProgramLog(nvrtcProgram program, char* log) {
  return Call<&nvrtcGetProgramLog>(Nvrtc(), __func__, kNoNvrtc, program, log);
}
nvrtcResult nvrtcGetProgramLogSize(nvrtcProgram program, size_t* bytes) {
  return Call<&nvrtcGetProgramLogSize>(Nvrtc(), __func__, kNoNvrtc, program, bytes);
}

}  // extern "C"
