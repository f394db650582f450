// What NVIDIA's libraries do in a training step, as the engine sees it: linears from NF4 or bf16 with their adapters,
// attention, the loss through the head; and what makes a step cheap to start and possible to look into. Like
// cuda_backend.h a door: no CUDA header is needed, and where the build has no CUDA, Create answers UNAVAILABLE.
//
// Everything is queued on the Exec's compute stream. Not thread-safe. A CUDA call that fails throws CudaError.
// Tests: tests/worker/train/cuda_engine_test.cc against the CPU engine, tests/kernels/cuda for the parts.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/ops.h"
#include "kernels/shapes/cce_shape.h"
#include "kernels/shapes/lora_fold.h"
#include "kernels/shapes/sdpa_shape.h"

namespace longhaul::kernels {

// The adapter of one of a linear's stacked parts: f32 in device memory, contiguous. Rank 0: it has none.
struct CudaLoraPart {
  float* a = nullptr;       // [rank, in]
  float* b = nullptr;       // [out, rank]
  float* grad_a = nullptr;  // of their shapes; added to
  float* grad_b = nullptr;
  int64_t rank = 0;  // not padded
  int64_t out = 0;
  uint64_t dropout_number = 0;  // which of the model's modules it is: each drops elements of its own
};

// A frozen linear with its adapter. Rows of its input x and of dy, the gradient of its output, have room for fold.rank
// elements behind fold.in and fold.out columns: what lies there is overwritten.
struct CudaLinear {
  cuda::LoraFold fold;               // its strides of x, y and dx are not looked at: the views have theirs
  std::vector<Nf4Weight> quantised;  // the parts, stacked by rows; not read where `cache` is not null
  void* cache = nullptr;             // [fold.out + fold.rank, fold.weight_stride] bf16; in FP8: of Fp8Linear
  std::vector<CudaLoraPart> parts;
  double lora_scale = 1;
  void* buffer = nullptr;   // where it is dequantised; null: the engine's
  void* adapter = nullptr;  // in FP8: Fp8Linear's block of bf16
};

// Device memory of the plan.
struct CudaEngineMemory {
  struct Block {
    void* data = nullptr;
    int64_t bytes = 0;
  };
  Block gemm;    // workspace of products
  Block weight;  // a dequantised linear; empty where all are cached
  Block attention_forward, attention_backward;
  Block attention_index;
  Block document_offsets;  // i64
  Block packed_kv;         // k, v, dk and dv of packed documents, of one call; empty where they lie alone already
  Block loss;
  // Empty, or for heads in groups: o's weight and, `group_offset` bytes on, the rows of q, k and v for one group.
  Block attention_weight;
  int64_t group_offset = 0;
  Block fp8_weight;  // a linear's operand of one direction; empty where all are cached
  Block fp8_rows;    // tokens as an operand
  Block dropout;     // a tile of an adapter's inputs with some dropped
};

struct CudaEngineShapes {
  // Of one call; heads are cut into `attention_calls` of them, and statistics lie call by call.
  int64_t attention_calls = 1;
  std::optional<cuda::SdpaShape> dense;  // micro-batches of equal full sequences
  cuda::SdpaShape packed;                // any others: all of their documents, or (batch 1) a call for each
  int64_t documents = 0;                 // of a micro-batch, at most; a multiple of packed.batch
  bool packed_by_reference = false;      // by our own kernels; else by cuDNN, as dense is
  cuda::CceShape loss;                   // its rows are those of a call
  int64_t head_groups = 1;               // heads in groups: how many, each of attention_calls / head_groups calls
  bool fp8 = false;                      // frozen linears in E4M3 (kernels/shapes/fp8_linear.h)
};

// Work that was captured once and starts as one.
class CudaGraph {
 public:
  virtual ~CudaGraph() = default;
  virtual void Launch() = 0;
};

struct CudaCapture {
  std::unique_ptr<CudaGraph> graph;  // null: it may not have so many nodes
  int64_t nodes = 0;                 // kernels and copies
};

class CudaEngine {
 public:
  // Loads the libraries and builds attention's kernels, which takes seconds. `head` [vocab, hidden] bf16.
  // UNAVAILABLE: NO_CUDA, CUDA_LIBRARY_MISSING and others of the libraries. FAILED_PRECONDITION PLAN_MISMATCH: a
  // library asks for more workspace than the plan has, or has no attention kernel that it was planned with.
  // UNIMPLEMENTED DEVICE_UNSUPPORTED: it has no FP8 product here.
  static absl::StatusOr<std::unique_ptr<CudaEngine>> Create(const Exec& exec, const CudaEngineMemory& memory,
                                                            const CudaEngineShapes& shapes,
                                                            std::vector<CudaLinear> linears, const void* head);
  virtual ~CudaEngine() = default;

  // The adapter into every cache (in FP8: block): after each change of the masters. Others take it at each use.
  virtual void PlaceAdapters() = 0;
  // LoRA dropout of what follows, 0 for none: x in x A^T, and the gradient that comes back through it, are those of the
  // CPU engine's Dropout, element by element (kernels/ops.h; the key of a module is CounterBits(key, dropout_number)).
  virtual void SetDropout(double probability, uint64_t key) = 0;
  // y = x W^T + s (x A^T) B^T, plus `residual` where its data is not null (laid out as y, and possibly y itself).
  // x [rows, in], y [rows, out] bf16; u [rows, rank] bf16 receives x A^T where its data is not null. `first_row`: of x
  // in its micro-batch, for dropout.
  virtual void Forward(size_t linear, const Tensor& x, int64_t first_row, const Tensor& residual, const Tensor& y,
                       const Tensor& u) = 0;
  // u alone.
  virtual void Input(size_t linear, const Tensor& x, int64_t first_row, const Tensor& u) = 0;
  // v = s dy B behind dy's rows; dx = dy W + v A where dx.data is not null.
  virtual void BackwardInput(size_t linear, const Tensor& dy, int64_t first_row, const Tensor& dx) = 0;
  // grad_A += v^T x, grad_B += s dy^T u. REQUIRES: BackwardInput of the same dy before.
  virtual void Gradients(size_t linear, const Tensor& dy, const Tensor& x, int64_t first_row, const Tensor& u) = 0;

  // The documents of the batch that Attention sees from now on: shapes.documents + 1 offsets in host memory, which
  // stays as it is until the upload is done: ascending from 0, `rows` from the last document's end on. REQUIRES: at
  // most shapes.documents of them. Not to be captured.
  virtual void BeginBatch(const int64_t* offsets, int64_t documents) = 0;
  // What Attention queues, apart from rows: the calls for packed documents, or 0 where it is dense. A captured pass
  // serves other batches of the same form.
  virtual int64_t batch_form() const = 0;
  // All calls, one after the other.
  virtual void AttentionForward(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& o,
                                const Tensor& lse) = 0;
  virtual void AttentionBackward(const Tensor& d_o, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& o,
                                 const Tensor& lse, const Tensor& dq, const Tensor& dk, const Tensor& dv) = 0;

  // Loss of hidden [rows, hidden] bf16, after the last norm, with the stride of CudaEngineShapes::loss; adds to
  // *totals. Where grad_scale is not null, d_hidden [rows, hidden] f32 becomes its gradient; its rows may begin where
  // hidden's do. labels [rows], kNotTrained where a row does not count.
  virtual void HeadLoss(const Tensor& hidden, const int32_t* labels, const double* grad_scale, LossTotals* totals,
                        const Tensor& d_hidden) = 0;

  // Copies beside the ops, each with a number of its own. They begin when what is queued so far is done; later ops wait
  // for them only by WaitForCopy. Host memory is pinned. Not to be captured.
  virtual void CopyOut(size_t number, void* host, const void* device, int64_t bytes) = 0;
  virtual void CopyIn(size_t number, void* device, const void* host, int64_t bytes) = 0;
  virtual void WaitForCopy(size_t number) = 0;

  // Between the two only the kernels of products and of the loss are chosen, for the rows that calls have; they, copies
  // beside and attention are not run. Returns the first that there is no kernel for (UNIMPLEMENTED GEMM_UNSUPPORTED).
  virtual void BeginPlanning() = 0;
  virtual absl::Status EndPlanning() = 0;
  // Products whose kernel was chosen since: in the middle of a step.
  virtual int64_t chosen_late() const = 0;

  // What `body` queues, as one graph; none where that would be more than `most_nodes`. Nothing in it may allocate or
  // wait; run it once before, so that every kernel is loaded and chosen. What body throws is thrown, and nothing was
  // queued.
  virtual CudaCapture Capture(const std::function<void()>& body, int64_t most_nodes) = 0;

  // A point in the stream; seconds between two points that were reached.
  virtual void Mark(size_t point) = 0;
  virtual double SecondsBetween(size_t from, size_t to) = 0;
  // Blocks the caller until the stream has reached the point; returns at once where it was never marked.
  virtual void WaitFor(size_t point) = 0;

  // From here on what is queued (and not captured) is timed by its part: "linears forward", "linears backward",
  // "dequantise", "quantise" (tokens, to FP8), "lora u", "lora v", "lora up", "lora dA", "lora dB", "attention
  // forward", "attention backward", "loss", and what BeginPart names. "copies beside" (CopyOut, CopyIn) run while
  // others do: their seconds are not the step's.
  struct Part {
    std::string name;
    double seconds = 0;
    int64_t calls = 0;
  };
  virtual void BeginProfile() = 0;
  virtual bool is_profiling() const = 0;
  // What is queued between the two is `part`. Not to be nested. `part` is a literal.
  virtual void BeginPart(const char* part) = 0;
  virtual void EndPart() = 0;
  // Waits, returns the parts since BeginProfile and stops timing.
  virtual std::vector<Part> EndProfile() = 0;

  // ---- Heads in groups: q, k, v and their gradients exist for some heads at a time ----

  // The rows of linear `qkv` for heads of `group` into their place, until the next BeginGroup or BackwardInput of
  // `qkv`.
  virtual void BeginGroup(size_t qkv, int64_t group) = 0;
  // y [rows, that group's q, k and v] = x times them. u as in Forward; where `has_u` it is read instead.
  virtual void ForwardGroup(size_t qkv, const Tensor& x, const Tensor& u, bool has_u, const Tensor& y) = 0;
  // o's weight into its place, until the next BackwardInput of linear q, k, v.
  virtual void BeginOutputGradient(size_t o) = 0;
  // Columns [first, first + d_o.cols) of dy W + v A. REQUIRES: BackwardInput of the same dy before, for its v.
  virtual void OutputGradient(size_t o, const Tensor& dy, int64_t first, const Tensor& d_o) = 0;
  // One call; q, k, v, o and gradients are its columns, lse all calls' statistics. dq may be q.
  virtual void CallForward(int64_t call, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& o,
                           const Tensor& lse) = 0;
  virtual void CallBackward(int64_t call, const Tensor& d_o, const Tensor& q, const Tensor& k, const Tensor& v,
                            const Tensor& o, const Tensor& lse, const Tensor& dq, const Tensor& dk,
                            const Tensor& dv) = 0;

  // Kernels and versions, for people and for a resume: "cublasLt 13.1.0 on NVIDIA H100 ...; cuDNN 9.14.0, ...".
  virtual std::string Describe() const = 0;
};

// w [out, in] bf16 in both directions of FP8: cache has Fp8Linear{out, in}.cache_bytes(). Queued.
void FillFp8Cache(const Exec& exec, const Tensor& w, void* cache);

// Device memory in use, by the driver's count, all processes together.
int64_t CudaUsedBytes(const Exec& exec);
// The same without what others held when the Exec was made: ours, as long as others take and give back nothing.
int64_t CudaOwnBytes(const Exec& exec);

}  // namespace longhaul::kernels
