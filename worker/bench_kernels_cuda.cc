// longhaul-bench kernels on a GPU: the engine over a model of two layers, one cached and one in NF4, each of its parts
// called by itself.
#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "base/env.h"
#include "base/status_macros.h"
#include "kernels/arena.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/kernel_rates.h"
#include "kernels/ops.h"
#include "model/cuda_layout.h"
#include "model/plan_layout.h"
#include "nlohmann/json.hpp"
#include "worker/bench_device.h"
#include "worker/bench_kernels.h"
#include "worker/bench_shapes.h"
#include "worker/train/cuda_ops.h"
#include "worker/train/cuda_weights.h"
#include "worker/train/weight_source.h"

namespace longhaul {
namespace {

using kernels::DType;
using kernels::Tensor;

constexpr int64_t kChunkBytes = int64_t{64} << 20;  // of f32 numbers on their way to bf16
constexpr double kLearned = 1.0 / 8192;             // a target's share of the loss
constexpr const char* kLinearNames[kFusedLinears] = {"qkv", "o", "gate_up", "down"};

absl::StatusOr<MemoryPlan> KernelsPlan(const BenchKernelsOptions& options) {
  LH_ASSIGN_OR_RETURN(ModelShape shape, BenchShape(options.shape));
  const int threads = options.threads > 0 ? options.threads : HostCpuThreads();
  LH_ASSIGN_OR_RETURN(const DeviceFacts facts, BenchGpuFacts(0, 0, threads));
  shape.layers = 2;
  TrainShape train;
  train.compute = options.compute == "fp8" ? ComputeType::kFP8 : ComputeType::kBF16;
  train.base = BaseWeights::kNf4;
  train.lora_rank = options.rank;
  train.deterministic = options.deterministic;
  train.batch_size = options.batch;
  train.sequence_length = options.tokens;
  LH_ASSIGN_OR_RETURN(MemoryPlan plan, MakePlan(shape, train, facts, {}));
  plan.choices.cached_layers = 1;
  plan.choices.attention_calls = 1;
  plan.choices.grouped_attention = plan.choices.host_attention = false;
  plan.choices.host_head = plan.choices.host_optimizer = false;
  plan.choices.token_tile_rows = PlannedRows(plan);
  LayOutPlan(&plan);
  return plan;
}

class CudaKernels {
 public:
  absl::Status Init(MemoryPlan plan) {
    plan_ = std::move(plan);
    LH_ASSIGN_OR_RETURN(exec_, train::CreateExec(plan_, false));
    LH_ASSIGN_OR_RETURN(memory_, train::EngineMemory::Create(plan_, *exec_));
    weights_ = train::CarveWeights(*memory_);
    LH_RETURN_IF_ERROR(
        train::LoadWeights(train::SyntheticWeightSource(plan_.shape, 1), *memory_, *exec_, weights_, nullptr));
    adapter_ = std::make_unique<train::Adapter>(*memory_);
    adapter_->Initialize(1);
    LH_ASSIGN_OR_RETURN(ops_, train::CreateOps(*memory_, *exec_, weights_, *adapter_, 1));
    ops_->AdapterChanged();
    engine_ = &static_cast<train::CudaOps&>(*ops_).engine();
    return CarveOperands();
  }

  absl::StatusOr<nlohmann::json> Rates() {
    rates_.push_back({{"name", "device"}, {"device", ops_->Describe()}});
    for (int i = 0; i < kFusedLinears; ++i) LH_RETURN_IF_ERROR(Linear(static_cast<FusedLinear>(i)));
    const double copy = kernels::DeviceCopyBytesPerSecond(*exec_);
    for (int i = 0; i < kFusedLinears; ++i) Dequantise(static_cast<FusedLinear>(i), copy);
    Attention();
    LH_RETURN_IF_ERROR(Loss());
    return rates_;
  }

 private:
  int64_t rows() const { return PlannedRows(plan_); }

  // x and its product, with room for what LoRA adds behind a row; attention's matrices; the loss's.
  absl::Status CarveOperands() {
    int64_t most_x = 0, most_y = 0, most_rank = 0;
    for (int i = 0; i < kFusedLinears; ++i) {
      const auto fold = PlanFold(plan_.shape, plan_.train, static_cast<FusedLinear>(i));
      most_x = std::max(most_x, fold.x_stride);
      most_y = std::max(most_y, fold.y_stride);
      most_rank = std::max(most_rank, fold.rank);
    }
    std::vector<kernels::ArenaRegion> regions;
    int64_t bytes = 0;
    const auto add = [&](const char* name, int64_t size) {
      regions.push_back({name, bytes, size});
      bytes += RoundUp(size, kCudaAlignBytes);
    };
    const int64_t n = rows();
    add("x", n * most_x * 2);
    add("y", n * most_y * 2);
    add("dx", n * most_x * 2);
    add("u", std::max<int64_t>(n * most_rank * 2, kCudaAlignBytes));
    const int64_t qkv_bytes = n * FieldOf(plan_, Act::kQkv).stride * 2,
                  o_bytes = n * FieldOf(plan_, Act::kO).stride * 2;
    add("qkv", qkv_bytes);
    add("d_qkv", n * StridesOf(plan_).d_qkv * 2);
    add("o", o_bytes);
    add("d_o", n * plan_.shape.q_dim() * 2);
    add("lse", FieldBytes(plan_, Act::kLse, n));
    add("hidden", LossRows(plan_) * plan_.shape.hidden * 4);
    add("hidden.source", LossRows(plan_) * plan_.shape.hidden * 2);
    add("labels", LossRows(plan_) * 4);
    add("scale", kCudaAlignBytes);
    add("totals", kCudaAlignBytes);
    add("chunk", kChunkBytes);
    LH_ASSIGN_OR_RETURN(operands_, kernels::CreateDeviceArena(*exec_, bytes, std::move(regions)));
    for (const char* name : {"x", "y", "qkv", "d_o", "hidden.source"}) FillRandom(name);
    return absl::OkStatus();
  }

  // bf16, uniform with deviation 1: on zeros a product runs 12% faster.
  void FillRandom(const char* name) {
    constexpr double kWidth = 3.4641;  // of a uniform distribution with deviation 1
    const int64_t count = operands_->RegionBytes(name) / 2, chunk = kChunkBytes / 4;
    for (int64_t at = 0; at < count; at += chunk) {
      const int64_t cols = std::min(chunk, count - at);
      const Tensor numbers = operands_->Matrix("chunk", DType::kF32, 1, cols);
      kernels::Uniform(*exec_, 1, at / chunk, kWidth, 0, numbers);
      kernels::Copy(*exec_, numbers, operands_->Matrix(name, DType::kBF16, 1, cols, at * 2));
    }
  }

  Tensor Rows(const char* name, int64_t cols, int64_t stride) const {
    return {operands_->Get(name), DType::kBF16, rows(), cols, stride};
  }

  void AddRow(const std::string& name, double seconds, double flops) {
    rates_.push_back({{"name", name}, {"seconds", seconds}, {"flops_per_s", flops / seconds}});
  }

  void AddProduct(const std::string& name, int64_t m, int64_t in, int64_t out, double flops, double seconds,
                  double library_seconds) {
    rates_.push_back({{"name", name},
                      {"rows", m},
                      {"in", in},
                      {"out", out},
                      {"seconds", seconds},
                      {"flops_per_s", flops / seconds},
                      {"library_flops_per_s", flops / library_seconds},
                      {"library_ratio", library_seconds / seconds}});
  }

  // x [m, in] W^T with W [out, in], or dy [m, out] W, by the library alone.
  absl::StatusOr<double> Plain(int64_t m, int64_t in, int64_t out, bool backward) const {
    kernels::cuda::GemmShape shape{.transpose_b = !backward,
                                   .m = m,
                                   .n = backward ? in : out,
                                   .k = backward ? out : in,
                                   .a_stride = backward ? out : in,
                                   .b_stride = in,
                                   .c_stride = backward ? in : out};
    return kernels::PlainGemmSeconds(*exec_, shape);
  }

  // Layer 0 is cached: no dequantisation.
  absl::Status Linear(FusedLinear which) {
    const auto fold = PlanFold(plan_.shape, plan_.train, which);
    const auto index = static_cast<size_t>(which);
    const Tensor x = Rows("x", fold.in, fold.x_stride), y = Rows("y", fold.out, fold.y_stride),
                 dx = Rows("dx", fold.in, fold.in), u = Rows("u", fold.rank, fold.rank);
    const double flops = 2.0 * static_cast<double>(rows()) * static_cast<double>(fold.in * fold.out);
    const std::string name = kLinearNames[index];
    // The product's own result would be the next run's gradient: filled anew for each.
    const double forward = kernels::SecondsOnDevice(*exec_, [&] { engine_->Forward(index, x, 0, {}, y, u); });
    FillRandom("y");
    LH_ASSIGN_OR_RETURN(const double plain_forward, Plain(rows(), fold.in, fold.out, false));
    AddProduct(name + " forward", rows(), fold.in, fold.out, flops, forward, plain_forward);
    const double backward = kernels::SecondsOnDevice(*exec_, [&] { engine_->BackwardInput(index, y, 0, dx); });
    LH_ASSIGN_OR_RETURN(const double plain_backward, Plain(rows(), fold.in, fold.out, true));
    AddProduct(name + " backward", rows(), fold.out, fold.in, flops, backward, plain_backward);
    if (fold.rank == 0) return absl::OkStatus();
    // dA and dB, each of `rank` columns of every part.
    const double gradients = kernels::SecondsOnDevice(*exec_, [&] { engine_->Gradients(index, y, x, 0, u); });
    AddRow(name + " LoRA gradients", gradients,
           2.0 * static_cast<double>(rows() * plan_.train.lora_rank) *
               static_cast<double>(PartsOf(plan_.shape, which).count * fold.in + fold.out));
    return absl::OkStatus();
  }

  // Layer 1 lies in NF4 with nested scales: 4 bits, and 8 bits for 64 values, become bf16.
  void Dequantise(FusedLinear which, double copy) {
    const std::vector<kernels::Nf4Weight> parts = train::QuantisedParts(*memory_, 1, which);
    const int64_t in = FusedIn(plan_.shape, which);
    double values = 0;
    for (const kernels::Nf4Weight& part : parts) values += static_cast<double>(part.out * in);
    void* const to = memory_->GetOrNull("weight.buffer");
    const double seconds = kernels::SecondsOnDevice(*exec_, [&] {
      int64_t row = 0;
      for (const kernels::Nf4Weight& part : parts) {
        const Tensor all{to, DType::kBF16, FusedOut(plan_.shape, which), in, in};
        kernels::Nf4Dequantize(*exec_, part, 0, all.Rows(row, row + part.out));
        row += part.out;
      }
    });
    const double rate = values * (2.5 + 1.0 / kNf4Block) / seconds;
    rates_.push_back({{"name", std::string(kLinearNames[static_cast<size_t>(which)]) + " dequantise"},
                      {"seconds", seconds},
                      {"bytes_per_s", rate},
                      {"copy_bytes_per_s", copy},
                      {"copy_ratio", rate / copy}});
  }

  // A layer's, of `batch` documents of `tokens`.
  void Attention() {
    const ModelShape& s = plan_.shape;
    const int64_t tokens = plan_.train.sequence_length, batch = plan_.train.batch_size;
    std::vector<int32_t> ids(static_cast<size_t>(rows())), positions(ids.size());
    std::vector<int64_t> offsets;
    for (int64_t d = 0; d <= batch; ++d) offsets.push_back(d * tokens);
    train::TokenBatch documents;
    documents.rows = batch * tokens;
    documents.ids = ids.data();
    documents.positions = positions.data();
    documents.doc_offsets = offsets.data();
    documents.docs = batch;
    ops_->Bring(documents);
    const Tensor qkv = Rows("qkv", FusedOut(s, FusedLinear::kQkv), FieldOf(plan_, Act::kQkv).stride);
    const Tensor d_qkv = Rows("d_qkv", qkv.cols, StridesOf(plan_).d_qkv);
    const Tensor o = Rows("o", s.q_dim(), FieldOf(plan_, Act::kO).stride), d_o = Rows("d_o", s.q_dim(), s.q_dim());
    const Tensor lse{operands_->Get("lse"), DType::kF32, rows(), s.heads, s.heads};
    const auto q = [&](const Tensor& all) { return all.Cols(0, s.q_dim()); };
    const auto k = [&](const Tensor& all) { return all.Cols(s.q_dim(), s.q_dim() + s.kv_dim()); };
    const auto v = [&](const Tensor& all) { return all.Cols(s.q_dim() + s.kv_dim(), all.cols); };
    const auto shape = kernels::cuda::DenseSdpa(1, tokens, s.heads, s.kv_heads, s.head_dim);
    const auto flops = [&](bool backward) {
      return static_cast<double>(batch) * kernels::cuda::SdpaFlops(shape, tokens, backward);
    };
    AddRow("attention forward",
           kernels::SecondsOnDevice(*exec_, [&] { ops_->AttentionForward(q(qkv), k(qkv), v(qkv), o, lse); }),
           flops(false));
    AddRow("attention backward",
           kernels::SecondsOnDevice(
               *exec_,
               [&] { ops_->AttentionBackward(d_o, q(qkv), k(qkv), v(qkv), o, lse, q(d_qkv), k(d_qkv), v(d_qkv)); }),
           flops(true));
  }

  // Of a call's rows, through the head and back.
  absl::Status Loss() {
    const ModelShape& s = plan_.shape;
    const int64_t n = LossRows(plan_);
    const Tensor d_hidden = operands_->Matrix("hidden", DType::kF32, n, s.hidden);
    const Tensor hidden{d_hidden.data, DType::kBF16, n, s.hidden, 2 * s.hidden};
    const Tensor source = operands_->Matrix("hidden.source", DType::kBF16, n, s.hidden);
    const std::vector<int32_t> labels(static_cast<size_t>(n), 1);
    exec_->Upload(operands_->Get("labels"), labels.data(), n * 4);
    exec_->Upload(operands_->Get("scale"), &kLearned, sizeof(kLearned));
    auto* const totals = static_cast<kernels::LossTotals*>(operands_->Get("totals"));
    const double seconds = kernels::SecondsOnDevice(*exec_, [&] {
      // Its gradient takes its place.
      kernels::Copy(*exec_, source, hidden);
      ops_->HeadLoss(hidden, static_cast<const int32_t*>(operands_->Get("labels")),
                     static_cast<const double*>(operands_->Get("scale")), totals, d_hidden);
    });
    LH_ASSIGN_OR_RETURN(const double logits, Plain(n, s.hidden, s.vocab, false));
    LH_ASSIGN_OR_RETURN(const double gradient, Plain(n, s.hidden, s.vocab, true));
    const double flops = 4.0 * static_cast<double>(n) * static_cast<double>(s.hidden * s.vocab);
    AddProduct("loss", n, s.hidden, s.vocab, flops, seconds, logits + gradient);
    return absl::OkStatus();
  }

  MemoryPlan plan_;
  std::unique_ptr<kernels::Exec> exec_;
  std::unique_ptr<train::EngineMemory> memory_;
  std::unique_ptr<kernels::Arena> operands_;
  train::ModelWeights weights_;
  std::unique_ptr<train::Adapter> adapter_;
  std::unique_ptr<train::EngineOps> ops_;
  kernels::CudaEngine* engine_ = nullptr;
  nlohmann::json rates_ = nlohmann::json::array();
};

}  // namespace

absl::StatusOr<nlohmann::json> BenchCudaKernels(const BenchKernelsOptions& options) {
  LH_ASSIGN_OR_RETURN(MemoryPlan plan, KernelsPlan(options));
  CudaKernels kernels;
  LH_RETURN_IF_ERROR(kernels.Init(std::move(plan)));
  return kernels.Rates();
}

}  // namespace longhaul
