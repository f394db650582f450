#include "kernels/cuda/lt_gemm.h"

#include <cublasLt.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstring>
#include <map>
#include <sstream>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/error.h"
#include "base/limits.h"
#include "kernels/cuda/lazy_libraries.h"
#include "kernels/cuda_error.h"

namespace longhaul::kernels::cuda {
namespace {

constexpr const char* kOp = "LtGemm";

CudaError LtError(const std::string& call, cublasStatus_t status) {
  return CudaError(kOp, call, status, cublasLtGetStatusString(status),
                   status == CUBLAS_STATUS_ALLOC_FAILED ? CudaShortage::kDevice : CudaShortage::kNone);
}

void Check(cublasStatus_t status, const char* call) {
  if (status != CUBLAS_STATUS_SUCCESS) throw LtError(call, status);
}

void CheckRuntime(cudaError_t error, const char* call) {
  if (error != cudaSuccess) throw CudaError(kOp, call, error, cudaGetErrorString(error));
}

// The library's objects, destroyed with their holder.
template <typename T, cublasStatus_t (*Destroy)(T)>
struct Destroyer {
  using pointer = T;
  void operator()(T object) const { Destroy(object); }
};
using Handle = std::unique_ptr<void, Destroyer<cublasLtHandle_t, cublasLtDestroy>>;
using Description = std::unique_ptr<void, Destroyer<cublasLtMatmulDesc_t, cublasLtMatmulDescDestroy>>;
using Layout = std::unique_ptr<void, Destroyer<cublasLtMatrixLayout_t, cublasLtMatrixLayoutDestroy>>;
using Preference = std::unique_ptr<void, Destroyer<cublasLtMatmulPreference_t, cublasLtMatmulPreferenceDestroy>>;

template <typename T>
void Set(const Description& description, cublasLtMatmulDescAttributes_t attribute, T value) {
  Check(cublasLtMatmulDescSetAttribute(description.get(), attribute, &value, sizeof(value)), "DescSetAttribute");
}

template <typename T>
void Set(const Preference& preference, cublasLtMatmulPreferenceAttributes_t attribute, T value) {
  Check(cublasLtMatmulPreferenceSetAttribute(preference.get(), attribute, &value, sizeof(value)),
        "PreferenceSetAttribute");
}

cudaDataType_t DataType(GemmElement element) {
  switch (element) {
    case GemmElement::kBF16:
      return CUDA_R_16BF;
    case GemmElement::kF32:
      return CUDA_R_32F;
    case GemmElement::kE4M3:
      return CUDA_R_8F_E4M3;
  }
  return CUDA_R_32F;
}

Layout MakeLayout(GemmElement element, int64_t rows, int64_t cols, int64_t stride) {
  cublasLtMatrixLayout_t layout = nullptr;
  Check(cublasLtMatrixLayoutCreate(&layout, DataType(element), static_cast<uint64_t>(rows), static_cast<uint64_t>(cols),
                                   stride),
        "MatrixLayoutCreate");
  return Layout(layout);
}

// The library reads column-major: a row-major matrix is its transpose there. So the product is taken as
// cT [n, m] = op(b)T * op(a)T, with b as the library's first operand and a as its second.
struct Problem {
  Description description;
  Layout first, second, result;
};

Problem MakeProblem(const GemmShape& shape) {
  cublasLtMatmulDesc_t description = nullptr;
  Check(cublasLtMatmulDescCreate(&description, CUBLAS_COMPUTE_32F, CUDA_R_32F), "MatmulDescCreate");
  Problem problem;
  problem.description.reset(description);
  Set(problem.description, CUBLASLT_MATMUL_DESC_TRANSA, shape.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N);
  Set(problem.description, CUBLASLT_MATMUL_DESC_TRANSB, shape.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N);
  if (shape.fast_accumulation) Set(problem.description, CUBLASLT_MATMUL_DESC_FAST_ACCUM, int8_t{1});
  if (shape.scale != GemmScale::kNone) {
    const int32_t mode = shape.scale == GemmScale::kRow ? CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F
                                                        : CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F;
    Set(problem.description, CUBLASLT_MATMUL_DESC_A_SCALE_MODE, mode);
    Set(problem.description, CUBLASLT_MATMUL_DESC_B_SCALE_MODE, mode);
    // The heuristics look at the pointers' alignment, and at nothing behind them.
    const auto* const somewhere = reinterpret_cast<const float*>(uintptr_t{256});
    Set(problem.description, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, somewhere);
    Set(problem.description, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, somewhere);
  }
  const auto [b_rows, b_cols] = shape.transpose_b ? std::pair(shape.k, shape.n) : std::pair(shape.n, shape.k);
  const auto [a_rows, a_cols] = shape.transpose_a ? std::pair(shape.m, shape.k) : std::pair(shape.k, shape.m);
  problem.first = MakeLayout(shape.input, b_rows, b_cols, shape.b_stride);
  problem.second = MakeLayout(shape.input, a_rows, a_cols, shape.a_stride);
  problem.result = MakeLayout(shape.output, shape.n, shape.m, shape.c_stride);
  return problem;
}

// A shape and the kernel chosen for it.
struct Choice {
  Problem problem;
  cublasLtMatmulAlgo_t algorithm{};
  int64_t workspace_bytes = 0;
};

constexpr size_t kAlgorithmWords = sizeof(cublasLtMatmulAlgo_t::data) / sizeof(uint64_t);

bool IsAligned(const void* pointer, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % static_cast<uintptr_t>(bytes) == 0;
}

absl::Status Unsupported(const GemmShape& shape, const std::string& why) {
  return MakeError(
      absl::StatusCode::kUnimplemented, "GEMM_UNSUPPORTED",
      "cuBLASLt " + LtGemm::LibraryVersion() + " has no kernel on this device for " + GemmKey(shape) + ": " + why);
}

// Milliseconds of the stream between two points, by events that live as long as this.
class Stopwatch {
 public:
  explicit Stopwatch(cudaStream_t stream) : stream_(stream) {
    CheckRuntime(cudaEventCreate(&begun_), "cudaEventCreate");
    CheckRuntime(cudaEventCreate(&ended_), "cudaEventCreate");
  }
  ~Stopwatch() {
    cudaEventDestroy(begun_);
    cudaEventDestroy(ended_);
  }
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;

  void Begin() { CheckRuntime(cudaEventRecord(begun_, stream_), "cudaEventRecord"); }
  float EndMs() {
    float ms = 0;
    CheckRuntime(cudaEventRecord(ended_, stream_), "cudaEventRecord");
    CheckRuntime(cudaEventSynchronize(ended_), "cudaEventSynchronize");
    CheckRuntime(cudaEventElapsedTime(&ms, begun_, ended_), "cudaEventElapsedTime");
    return ms;
  }

 private:
  cudaStream_t stream_;
  cudaEvent_t begun_ = nullptr, ended_ = nullptr;
};

}  // namespace

struct LtGemm::Impl {
  Handle handle;
  int64_t max_workspace_bytes = 0;
  std::string device_name;
  std::map<GemmShape, Choice> choices;
  bool plans_only = false;
  absl::Status first_error;  // while it does

  // The library's candidates, best first, none that it refuses.
  std::vector<cublasLtMatmulHeuristicResult_t> Candidates(const GemmShape& shape, const Problem& problem,
                                                          int wanted) const {
    cublasLtMatmulPreference_t created = nullptr;
    Check(cublasLtMatmulPreferenceCreate(&created), "PreferenceCreate");
    const Preference preference(created);
    Set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<uint64_t>(max_workspace_bytes));
    for (const auto operand :
         {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
          CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES}) {
      Set(preference, operand, static_cast<uint32_t>(shape.alignment_bytes));
    }
    std::vector<cublasLtMatmulHeuristicResult_t> results(static_cast<size_t>(wanted));
    int found = 0;
    const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
        handle.get(), problem.description.get(), problem.first.get(), problem.second.get(), problem.result.get(),
        problem.result.get(), preference.get(), wanted, results.data(), &found);
    if (status == CUBLAS_STATUS_NOT_SUPPORTED || status == CUBLAS_STATUS_INVALID_VALUE) return {};
    Check(status, "MatmulAlgoGetHeuristic");
    results.resize(static_cast<size_t>(found));
    std::erase_if(results, [](const auto& result) { return result.state != CUBLAS_STATUS_SUCCESS; });
    return results;
  }

  cublasStatus_t Launch(cudaStream_t stream, const GemmShape& shape, const Problem& problem, float alpha,
                        const GemmOperands& operands, const cublasLtMatmulAlgo_t& algorithm,
                        const GemmWorkspace& workspace) const {
    if (shape.scale != GemmScale::kNone) {
      Set(problem.description, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, operands.b_scale);
      Set(problem.description, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, operands.a_scale);
    }
    const float beta = shape.accumulate ? 1.0f : 0.0f;
    const void* const added_to = operands.added_to != nullptr ? operands.added_to : operands.c;
    return cublasLtMatmul(handle.get(), problem.description.get(), &alpha, operands.b, problem.first.get(), operands.a,
                          problem.second.get(), &beta, added_to, problem.result.get(), operands.c, problem.result.get(),
                          &algorithm, workspace.data, static_cast<size_t>(workspace.bytes), stream);
  }

  // Milliseconds of one call, the least of a few; negative where the library refuses to run it.
  float TimeMs(cudaStream_t stream, const GemmShape& shape, const Problem& problem, const GemmOperands& operands,
               const cublasLtMatmulAlgo_t& algorithm, const GemmWorkspace& workspace) const {
    Stopwatch stopwatch(stream);
    float least = -1;
    for (int round = 0; round < limits::kGemmTimingRounds; ++round) {
      stopwatch.Begin();
      if (Launch(stream, shape, problem, 1.0f, operands, algorithm, workspace) != CUBLAS_STATUS_SUCCESS) return -1;
      const float ms = stopwatch.EndMs();
      // The first call loads the kernel.
      if (round > 0 && (least < 0 || ms < least)) least = ms;
    }
    return least;
  }

  std::string Header() const { return "cublasLt " + LtGemm::LibraryVersion() + " on " + device_name; }
};

LtGemm::LtGemm() : impl_(std::make_unique<Impl>()) {}
LtGemm::~LtGemm() = default;

absl::StatusOr<std::unique_ptr<LtGemm>> LtGemm::Create(int64_t max_workspace_bytes) {
  LH_CHECK(max_workspace_bytes >= 0);
  if (absl::Status status = LoadCudaLibraries(); !status.ok()) return status;
  std::unique_ptr<LtGemm> gemm(new LtGemm);
  cublasLtHandle_t handle = nullptr;
  const cublasStatus_t status = cublasLtCreate(&handle);
  if (status != CUBLAS_STATUS_SUCCESS) {
    return MakeError(absl::StatusCode::kUnavailable, "CUBLASLT_UNAVAILABLE",
                     std::string("cuBLASLt does not start: ") + cublasLtGetStatusString(status) +
                         "; check that the driver is at least the one of CUDA 13 and that device memory is free");
  }
  gemm->impl_->handle.reset(handle);
  gemm->impl_->max_workspace_bytes = max_workspace_bytes;
  int device = 0;
  cudaDeviceProp facts{};
  CheckRuntime(cudaGetDevice(&device), "cudaGetDevice");
  CheckRuntime(cudaGetDeviceProperties(&facts, device), "cudaGetDeviceProperties");
  gemm->impl_->device_name = facts.name;
  return gemm;
}

absl::StatusOr<int64_t> LtGemm::Plan(const GemmShape& shape) {
  if (absl::Status status = CheckGemmShape(shape); !status.ok()) return status;
  if (const auto known = impl_->choices.find(shape); known != impl_->choices.end()) {
    return known->second.workspace_bytes;
  }
  Choice choice{.problem = MakeProblem(shape)};
  const auto candidates = impl_->Candidates(shape, choice.problem, 1);
  if (candidates.empty()) return Unsupported(shape, "its heuristics return nothing");
  choice.algorithm = candidates[0].algo;
  choice.workspace_bytes = static_cast<int64_t>(candidates[0].workspaceSize);
  const int64_t bytes = choice.workspace_bytes;
  impl_->choices.emplace(shape, std::move(choice));
  return bytes;
}

absl::StatusOr<int64_t> LtGemm::PlanTimed(cudaStream_t stream, const GemmShape& shape, const GemmOperands& operands,
                                          const GemmWorkspace& workspace) {
  if (absl::Status status = CheckGemmShape(shape); !status.ok()) return status;
  LH_CHECK(workspace.bytes >= impl_->max_workspace_bytes);
  Choice choice{.problem = MakeProblem(shape)};
  float least = -1;
  for (const auto& candidate : impl_->Candidates(shape, choice.problem, limits::kMaxGemmCandidates)) {
    const float ms = impl_->TimeMs(stream, shape, choice.problem, operands, candidate.algo, workspace);
    if (ms < 0 || (least >= 0 && ms >= least)) continue;
    least = ms;
    choice.algorithm = candidate.algo;
    choice.workspace_bytes = static_cast<int64_t>(candidate.workspaceSize);
  }
  if (least < 0) return Unsupported(shape, "none of its candidates runs");
  const int64_t bytes = choice.workspace_bytes;
  impl_->choices.insert_or_assign(shape, std::move(choice));
  return bytes;
}

void LtGemm::Run(cudaStream_t stream, const GemmShape& shape, float alpha, const GemmOperands& operands,
                 const GemmWorkspace& workspace) const {
  const auto known = impl_->choices.find(shape);
  LH_CHECK(known != impl_->choices.end(), "no plan for " + GemmKey(shape));
  const Choice& choice = known->second;
  LH_CHECK(workspace.bytes >= choice.workspace_bytes, GemmKey(shape));
  LH_CHECK(IsAligned(operands.a, shape.alignment_bytes) && IsAligned(operands.b, shape.alignment_bytes) &&
               IsAligned(operands.c, shape.alignment_bytes) && IsAligned(operands.added_to, shape.alignment_bytes),
           GemmKey(shape));
  LH_CHECK((shape.scale != GemmScale::kNone) == (operands.a_scale != nullptr) &&
               (shape.scale != GemmScale::kNone) == (operands.b_scale != nullptr),
           GemmKey(shape));
  // The bytes promised, not the bytes there are: a kernel must not find more to split into.
  const cublasStatus_t status = impl_->Launch(stream, shape, choice.problem, alpha, operands, choice.algorithm,
                                              {workspace.data, choice.workspace_bytes});
  if (status != CUBLAS_STATUS_SUCCESS) throw LtError("cublasLtMatmul(" + GemmKey(shape) + ")", status);
}

absl::StatusOr<GemmScale> LtGemm::BestFp8Scale() {
  // A shape that every FP8 kernel takes.
  GemmShape shape{.transpose_b = true,
                  .input = GemmElement::kE4M3,
                  .m = 256,
                  .n = 256,
                  .k = 256,
                  .a_stride = 256,
                  .b_stride = 256,
                  .c_stride = 256};
  for (const GemmScale scale : {GemmScale::kRow, GemmScale::kTensor}) {
    shape.scale = scale;
    if (!impl_->Candidates(shape, MakeProblem(shape), 1).empty()) return scale;
  }
  return Unsupported(shape, "its heuristics return nothing, with either kind of scale");
}

void LtGemm::PlanAndRun(cudaStream_t stream, const GemmShape& shape, float alpha, const GemmOperands& operands,
                        const GemmWorkspace& workspace) {
  const auto bytes = Plan(shape);
  if (impl_->plans_only) {
    impl_->first_error.Update(bytes.status());
    return;
  }
  if (!bytes.ok()) throw CudaError(kOp, GemmKey(shape), 0, std::string(bytes.status().message()));
  Run(stream, shape, alpha, operands, workspace);
}

void LtGemm::BeginPlanning() {
  impl_->plans_only = true;
  impl_->first_error = absl::OkStatus();
}

absl::Status LtGemm::EndPlanning() {
  impl_->plans_only = false;
  return impl_->first_error;
}

int64_t LtGemm::planned_shapes() const { return static_cast<int64_t>(impl_->choices.size()); }

int64_t LtGemm::workspace_bytes() const {
  int64_t bytes = 0;
  for (const auto& [shape, choice] : impl_->choices) bytes = std::max(bytes, choice.workspace_bytes);
  return bytes;
}

std::string LtGemm::Describe(const GemmShape& shape) const {
  constexpr std::array<std::pair<cublasLtMatmulAlgoConfigAttributes_t, const char*>, 9> kAttributes = {{
      {CUBLASLT_ALGO_CONFIG_ID, "algo"},
      {CUBLASLT_ALGO_CONFIG_TILE_ID, "tile"},
      {CUBLASLT_ALGO_CONFIG_STAGES_ID, "stages"},
      {CUBLASLT_ALGO_CONFIG_SPLITK_NUM, "split_k"},
      {CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME, "reduction"},
      {CUBLASLT_ALGO_CONFIG_CTA_SWIZZLING, "swizzling"},
      {CUBLASLT_ALGO_CONFIG_CUSTOM_OPTION, "option"},
      {CUBLASLT_ALGO_CONFIG_INNER_SHAPE_ID, "inner"},
      {CUBLASLT_ALGO_CONFIG_CLUSTER_SHAPE_ID, "cluster"},
  }};
  const auto known = impl_->choices.find(shape);
  LH_CHECK(known != impl_->choices.end(), "no plan for " + GemmKey(shape));
  std::ostringstream out;
  for (const auto& [attribute, name] : kAttributes) {
    // Four bytes each, but for the inner and cluster shapes' two.
    uint32_t value = 0;
    size_t written = 0;
    const bool is_short =
        attribute == CUBLASLT_ALGO_CONFIG_INNER_SHAPE_ID || attribute == CUBLASLT_ALGO_CONFIG_CLUSTER_SHAPE_ID;
    if (cublasLtMatmulAlgoConfigGetAttribute(&known->second.algorithm, attribute, &value,
                                             is_short ? sizeof(uint16_t) : sizeof(uint32_t),
                                             &written) == CUBLAS_STATUS_SUCCESS) {
      out << name << ' ' << value << ' ';
    }
  }
  out << "workspace " << known->second.workspace_bytes;
  return out.str();
}

std::string LtGemm::LibraryVersion() {
  const size_t version = cublasLtGetVersion();
  return std::to_string(version / 10000) + "." + std::to_string(version / 100 % 100) + "." +
         std::to_string(version % 100);
}

std::string LtGemm::Save() const {
  std::ostringstream out;
  out << impl_->Header() << '\n';
  for (const auto& [shape, choice] : impl_->choices) {
    out << GemmKey(shape) << " =";
    for (const uint64_t word : choice.algorithm.data) out << ' ' << std::hex << word << std::dec;
    out << '\n';
  }
  return out.str();
}

namespace {

absl::Status Changed(const std::string& what) {
  return MakeError(absl::StatusCode::kFailedPrecondition, "GEMM_ALGORITHMS_CHANGED",
                   what + "; the run can go on with kernels chosen anew, which may differ in the last bits");
}

absl::StatusOr<cublasLtMatmulAlgo_t> ParseWords(const std::string& text) {
  cublasLtMatmulAlgo_t algorithm{};
  std::istringstream in(text);
  std::string word;
  for (uint64_t& value : algorithm.data) {
    if (!(in >> word)) return InvalidField("gemm algorithm", "has fewer than 8 words: '" + text + "'");
    const char* const end = word.data() + word.size();
    const auto [at, error] = std::from_chars(word.data(), end, value, 16);
    if (error != std::errc() || at != end) return InvalidField("gemm algorithm", "has the word '" + word + "'");
  }
  static_assert(kAlgorithmWords == 8);
  if (in >> word) return InvalidField("gemm algorithm", "has more than 8 words: '" + text + "'");
  return algorithm;
}

}  // namespace

absl::Status LtGemm::Restore(const std::string& text) {
  std::istringstream in(text);
  std::string line;
  if (!std::getline(in, line) || line.rfind("cublasLt ", 0) != 0) {
    return InvalidField("gemm algorithms", "do not begin with the library's version");
  }
  if (line != impl_->Header()) return Changed("kernels were chosen for " + line + ", this is " + impl_->Header());
  std::map<GemmShape, Choice> restored;
  while (std::getline(in, line)) {
    const size_t equals = line.find(" = ");
    if (equals == std::string::npos) return InvalidField("gemm algorithms", "has the line '" + line + "'");
    const auto shape = ParseGemmKey(line.substr(0, equals));
    if (!shape.ok()) return shape.status();
    const auto algorithm = ParseWords(line.substr(equals + 3));
    if (!algorithm.ok()) return algorithm.status();
    Choice choice{.problem = MakeProblem(*shape), .algorithm = *algorithm};
    const Problem& problem = choice.problem;
    cublasLtMatmulHeuristicResult_t result{};
    const cublasStatus_t status = cublasLtMatmulAlgoCheck(
        impl_->handle.get(), problem.description.get(), problem.first.get(), problem.second.get(), problem.result.get(),
        problem.result.get(), &choice.algorithm, &result);
    choice.workspace_bytes = static_cast<int64_t>(result.workspaceSize);
    if (status != CUBLAS_STATUS_SUCCESS || choice.workspace_bytes > impl_->max_workspace_bytes) {
      return Changed("the library does not take the kernel chosen for " + GemmKey(*shape) + " any more");
    }
    restored.insert_or_assign(*shape, std::move(choice));
  }
  for (auto& [shape, choice] : restored) impl_->choices.insert_or_assign(shape, std::move(choice));
  return absl::OkStatus();
}

}  // namespace longhaul::kernels::cuda
