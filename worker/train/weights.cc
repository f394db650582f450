#include "worker/train/weights.h"

#include <malloc.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/half.h"
#include "base/status_macros.h"
#include "model/plan_layout.h"
#include "nlohmann/json.hpp"
#include "worker/train/base_reader.h"
#include "worker/train/cuda_weights.h"

namespace longhaul::train {
namespace {

using kernels::DType;
using kernels::Exec;
using kernels::FrozenWeight;
using kernels::Tensor;

constexpr int64_t kChunkElements = 1 << 16;

// Walks a region and hands out frozen weights one after the other, as plan_layout sized them.
class FrozenCarver {
 public:
  FrozenCarver(const EngineMemory& memory, const std::string& region)
      : memory_(memory), next_(static_cast<uint8_t*>(memory.Home(region).Get(region))) {}

  FrozenWeight Take(int64_t out, int64_t in) {
    const MemoryPlan& plan = memory_.plan();
    const FrozenBytes bytes = FrozenWeightBytes(plan.train, plan.choices.packed_weights, out, in, plan.kind);
    FrozenWeight w;
    w.out = out;
    w.in = in;
    w.packed = plan.choices.packed_weights;
    w.dtype = !w.packed ? memory_.dtype() : plan.train.compute == ComputeType::kBF16 ? DType::kBF16 : DType::kF32;
    w.forward = next_;
    w.backward = !w.packed ? w.forward : bytes.backward > 0 ? next_ + bytes.forward : nullptr;
    next_ += bytes.total();
    return w;
  }

 private:
  const EngineMemory& memory_;
  uint8_t* next_;
};

class Loader {
 public:
  Loader(const WeightSource& source, const EngineMemory& memory, const Exec& exec)
      : source_(source), memory_(memory), exec_(exec), reader_(source, memory.plan().train.base, exec.threads()) {}

  struct Part {
    std::string name;
    int64_t rows;
  };

  // The parts, stacked by rows, into w.
  absl::Status Linear(const std::vector<Part>& parts, const FrozenWeight& w, bool may_quantise) {
    const bool direct = !w.packed && w.dtype == DType::kF32;
    float* const rows = direct ? static_cast<float*>(w.forward)
                               : memory_.arena().Matrix("load.staging", DType::kF32, w.out, w.in).as<float>();
    float* next = rows;
    for (const Part& part : parts) {
      LH_RETURN_IF_ERROR(reader_.Read(part.name, part.rows, w.in, may_quantise, next));
      next += part.rows * w.in;
    }
    const Tensor staged = kernels::MakeTensor(rows, DType::kF32, w.out, w.in);
    if (w.packed) {
      // The blocks' padding is read by the library and must not be whatever lay there.
      const MemoryPlan& plan = memory_.plan();
      const FrozenBytes bytes = FrozenWeightBytes(plan.train, true, w.out, w.in, plan.kind);
      std::memset(w.forward, 0, static_cast<size_t>(bytes.forward));
      if (w.backward != nullptr) std::memset(w.backward, 0, static_cast<size_t>(bytes.backward));
      kernels::PackWeight(exec_, staged, w);
    } else if (!direct) {
      kernels::Copy(exec_, staged, kernels::MakeTensor(w.forward, w.dtype, w.out, w.in));
    }
    return absl::OkStatus();
  }

  // A table or vector that is never quantised.
  absl::Status Plain(const std::string& name, const Tensor& to) {
    if (to.dtype == DType::kF32) return reader_.Read(name, to.rows, to.cols, false, to.as<float>());
    std::vector<float> row_block;
    const int64_t rows = std::clamp<int64_t>(kChunkElements / to.cols, 1, to.rows);
    row_block.resize(static_cast<size_t>(rows * to.cols));
    for (int64_t begin = 0; begin < to.rows; begin += rows) {
      const int64_t end = std::min(to.rows, begin + rows);
      LH_RETURN_IF_ERROR(source_.ReadRows(name, begin, end, row_block.data()));
      kernels::Copy(exec_, kernels::MakeTensor(row_block.data(), DType::kF32, end - begin, to.cols),
                    to.Rows(begin, end));
    }
    return absl::OkStatus();
  }

 private:
  const WeightSource& source_;
  const EngineMemory& memory_;
  const Exec& exec_;
  BaseReader reader_;
};

template <typename T>
void FillRope(const ModelShape& shape, const Tensor& cos, const Tensor& sin) {
  std::vector<double> frequencies(static_cast<size_t>(shape.head_dim / 2));
  RopeInverseFrequencies(shape.rope, shape.head_dim, cos.rows, frequencies.data());
  const double scale = RopeAttentionFactor(shape.rope);
  for (int64_t position = 0; position < cos.rows; ++position) {
    for (int64_t i = 0; i < cos.cols; ++i) {
      const double angle = static_cast<double>(position) * frequencies[static_cast<size_t>(i)];
      cos.as<T>()[position * cos.stride + i] = static_cast<T>(scale * std::cos(angle));
      sin.as<T>()[position * sin.stride + i] = static_cast<T>(scale * std::sin(angle));
    }
  }
}

absl::Status UploadRope(const Exec& exec, const ModelShape& shape, const ModelWeights& weights) {
  const Tensor& table = weights.rope_cos;
  std::vector<float> cos(static_cast<size_t>(table.rows * table.cols)), sin(cos.size());
  FillRope<float>(shape, kernels::MakeTensor(cos.data(), DType::kF32, table.rows, table.cols),
                  kernels::MakeTensor(sin.data(), DType::kF32, table.rows, table.cols));
  exec.Upload(weights.rope_cos.data, cos.data(), weights.rope_cos.bytes());
  exec.Upload(weights.rope_sin.data, sin.data(), weights.rope_sin.bytes());
  exec.Synchronize();
  return absl::OkStatus();
}

absl::Status LoadLayer(const ModelShape& s, const std::string& prefix, const LayerWeights& w, Loader* loader) {
  const std::string attention = prefix + "self_attn.";
  const std::string mlp = prefix + "mlp.";
  LH_RETURN_IF_ERROR(loader->Linear({{attention + "q_proj.weight", s.q_dim()},
                                     {attention + "k_proj.weight", s.kv_dim()},
                                     {attention + "v_proj.weight", s.kv_dim()}},
                                    w.qkv, true));
  LH_RETURN_IF_ERROR(loader->Linear({{attention + "o_proj.weight", s.hidden}}, w.o, true));
  LH_RETURN_IF_ERROR(loader->Linear(
      {{mlp + "gate_proj.weight", s.intermediate}, {mlp + "up_proj.weight", s.intermediate}}, w.gate_up, true));
  LH_RETURN_IF_ERROR(loader->Linear({{mlp + "down_proj.weight", s.hidden}}, w.down, true));
  LH_RETURN_IF_ERROR(loader->Plain(prefix + "input_layernorm.weight", w.norm1));
  LH_RETURN_IF_ERROR(loader->Plain(prefix + "post_attention_layernorm.weight", w.norm2));
  if (s.qk_norm) {
    LH_RETURN_IF_ERROR(loader->Plain(attention + "q_norm.weight", w.q_norm));
    LH_RETURN_IF_ERROR(loader->Plain(attention + "k_norm.weight", w.k_norm));
  }
  return absl::OkStatus();
}

absl::Status ReadBase(const WeightSource& source, const EngineMemory& memory, const Exec& exec,
                      const ModelWeights& weights) {
  const MemoryPlan& plan = memory.plan();
  Loader loader(source, memory, exec);
  for (int64_t i = 0; i < plan.shape.layers; ++i) {
    LH_RETURN_IF_ERROR(LoadLayer(plan.shape, "model.layers." + std::to_string(i) + ".",
                                 weights.layers[static_cast<size_t>(i)], &loader));
  }
  LH_RETURN_IF_ERROR(loader.Plain("model.norm.weight", weights.final_norm));
  const char* const embedding = "model.embed_tokens.weight";
  const std::string head = plan.shape.tied_embeddings ? embedding : "lm_head.weight";
  LH_RETURN_IF_ERROR(loader.Linear({{head, plan.shape.vocab}}, weights.head, /*may_quantise=*/false));
  if (SharesHeadWithEmbedding(plan)) return absl::OkStatus();
  return loader.Plain(embedding, weights.embedding);
}

}  // namespace

ModelWeights CarveWeights(const EngineMemory& memory) {
  const MemoryPlan& plan = memory.plan();
  const ModelShape& s = plan.shape;
  const bool cpu = plan.device == DeviceKind::kCpu;
  const int64_t elt = kernels::DTypeBytes(memory.stat_dtype());
  ModelWeights weights;
  FrozenCarver layers(memory, cpu ? "weights.layers" : "weights.head");
  int64_t norm_offset = 0;
  const auto norm = [&](int64_t cols) {
    const Tensor t = memory.StatMatrix("weights.norms", 1, cols, norm_offset);
    norm_offset += cols * elt;
    return t;
  };
  for (int64_t i = 0; i < s.layers; ++i) {
    LayerWeights w;
    if (cpu) {
      w.qkv = layers.Take(FusedOut(s, FusedLinear::kQkv), FusedIn(s, FusedLinear::kQkv));
      w.o = layers.Take(FusedOut(s, FusedLinear::kO), FusedIn(s, FusedLinear::kO));
      w.gate_up = layers.Take(FusedOut(s, FusedLinear::kGateUp), FusedIn(s, FusedLinear::kGateUp));
      w.down = layers.Take(FusedOut(s, FusedLinear::kDown), FusedIn(s, FusedLinear::kDown));
    }
    w.norm1 = norm(s.hidden);
    w.norm2 = norm(s.hidden);
    if (s.qk_norm) {
      w.q_norm = norm(s.head_dim);
      w.k_norm = norm(s.head_dim);
    }
    weights.layers.push_back(w);
  }
  weights.final_norm = norm(s.hidden);
  if (cpu) {
    const DType table = plan.train.compute == ComputeType::kBF16 ? DType::kBF16 : memory.dtype();
    weights.head = FrozenCarver(memory, "weights.head").Take(s.vocab, s.hidden);
    weights.embedding = SharesHeadWithEmbedding(plan)
                            ? kernels::MakeTensor(weights.head.forward, memory.dtype(), s.vocab, s.hidden)
                            : memory.arena().Matrix("weights.embedding", table, s.vocab, s.hidden);
  } else {
    const Tensor head = memory.Matrix("weights.head", s.vocab, s.hidden);
    weights.head = {s.vocab, s.hidden, DType::kBF16, /*packed=*/false, head.data, head.data};
    weights.embedding = s.tied_embeddings ? head : memory.Matrix("weights.embedding", s.vocab, s.hidden);
  }
  const int64_t half = s.head_dim / 2;
  weights.rope_cos = memory.StatMatrix("rope", plan.train.longest(), half);
  weights.rope_sin = memory.StatMatrix("rope", plan.train.longest(), half, plan.train.longest() * half * elt);
  return weights;
}

absl::Status LoadWeights(const WeightSource& source, const EngineMemory& memory, const Exec& exec,
                         const ModelWeights& weights, BaseCache* cache) {
  const MemoryPlan& plan = memory.plan();
  if (ModelShapeToJson(source.shape()) != ModelShapeToJson(plan.shape)) {
    return MakeError(absl::StatusCode::kInvalidArgument, "PLAN_MISMATCH",
                     "the model's shape is " + ModelShapeToJson(source.shape()).dump() + ", the memory plan's is " +
                         ModelShapeToJson(plan.shape).dump());
  }
  if (plan.device == DeviceKind::kCuda) {
    LH_RETURN_IF_ERROR(LoadCudaWeights(source, memory, weights));
    return UploadRope(exec, plan.shape, weights);
  }
  if (cache == nullptr || !cache->Load(exec)) {
    LH_RETURN_IF_ERROR(ReadBase(source, memory, exec, weights));
    malloc_trim(0);  // the loader's 4-bit scratch is not part of the plan
    LH_RETURN_IF_ERROR(source.CheckUnchanged());
    if (cache != nullptr) cache->Store();
  }
  if (memory.dtype() == DType::kF64) {
    FillRope<double>(plan.shape, weights.rope_cos, weights.rope_sin);
  } else {
    FillRope<float>(plan.shape, weights.rope_cos, weights.rope_sin);
  }
  return absl::OkStatus();
}

}  // namespace longhaul::train
