#include "worker/train/cuda_weights.h"

#include <algorithm>
#include <mutex>
#include <optional>
#include <string>

#include "base/error.h"
#include "base/nf4.h"
#include "base/status_macros.h"
#include "kernels/cuda/cuda_engine.h"
#include "model/cuda_layout.h"
#include "worker/train/step_scalars.h"

namespace longhaul::train {
namespace {

using kernels::DType;
using kernels::Nf4Weight;
using kernels::Tensor;

constexpr int64_t kReadElements = 1 << 18;  // of a thread at a time

const char* ModuleName(LoraTarget target) {
  switch (target) {
    case LoraTarget::kQ:
      return "self_attn.q_proj.weight";
    case LoraTarget::kK:
      return "self_attn.k_proj.weight";
    case LoraTarget::kV:
      return "self_attn.v_proj.weight";
    case LoraTarget::kO:
      return "self_attn.o_proj.weight";
    case LoraTarget::kGate:
      return "mlp.gate_proj.weight";
    case LoraTarget::kUp:
      return "mlp.up_proj.weight";
    case LoraTarget::kDown:
      return "mlp.down_proj.weight";
  }
  return "";
}

// The arrays of one matrix from `base` on. The values are bf16 in use, so that is what they are rounded to.
Nf4Weight Nf4At(uint8_t* base, int64_t out, int64_t in, float* absmax) {
  const Nf4Bytes bytes = Nf4BytesOf(out, in);
  Nf4Weight w;
  w.out = out;
  w.in = in;
  w.block = kNf4Block;
  w.packed = base;
  w.absmax = absmax;
  w.absmax_codes = base + bytes.codes;
  w.nested_absmax = reinterpret_cast<float*>(base + bytes.nested);
  w.nested_offset = reinterpret_cast<float*>(base + bytes.offset);
  return w;
}

class CudaLoader {
 public:
  CudaLoader(const WeightSource& source, const EngineMemory& memory)
      : source_(source), memory_(memory), exec_(memory.exec()) {}

  absl::Status Linear(int64_t layer, FusedLinear linear) {
    const MemoryPlan& plan = memory_.plan();
    const int64_t in = FusedIn(plan.shape, linear), out = FusedOut(plan.shape, linear);
    const std::string prefix = "model.layers." + std::to_string(layer) + ".";
    const FusedParts parts = PartsOf(plan.shape, linear);
    void* const cached = CachedWeight(memory_, layer, linear);
    if (cached == nullptr) {
      const std::vector<Nf4Weight> quantised = QuantisedParts(memory_, layer, linear);
      for (int i = 0; i < parts.count; ++i) {
        LH_RETURN_IF_ERROR(Codes(prefix + ModuleName(parts.parts[i].target), quantised[static_cast<size_t>(i)]));
      }
      return absl::OkStatus();
    }
    const bool fp8 = ComputesInFp8(plan);
    const int64_t stride = fp8 ? in : PlanFold(plan.shape, plan.train, linear).weight_stride;
    const Tensor rows{fp8 ? memory_.GetOrNull("weight.buffer") : cached, DType::kBF16, out, in, stride};
    int64_t row = 0;
    for (int i = 0; i < parts.count; ++i) {
      const int64_t end = row + parts.parts[i].out;
      LH_RETURN_IF_ERROR(Values(prefix + ModuleName(parts.parts[i].target), rows.Rows(row, end)));
      row = end;
    }
    if (fp8) kernels::FillFp8Cache(exec_, rows, cached);
    return absl::OkStatus();
  }

  // As stored, rounded to `to`'s type.
  absl::Status Plain(const std::string& name, const Tensor& to) {
    LH_RETURN_IF_ERROR(Chunks(name, to.rows, to.cols, [&](const Tensor& rows, int64_t begin) {
      const Tensor part = to.Rows(begin, begin + rows.rows);
      kernels::Copy(exec_, rows, part);
      kernels::CountNonFinite(exec_, part, &ScalarsOf(memory_)->non_finite_weights);
    }));
    return CheckFinite(name);
  }

 private:
  // The values that are multiplied with; in a base of NF4 those that its codes stand for.
  absl::Status Values(const std::string& name, const Tensor& to) {
    const bool stored = source_.Type(name) == StoredAs::kNf4;
    if (memory_.plan().train.base != BaseWeights::kNf4 || (stored && !IsOurs(*source_.Nf4(name)))) {
      return Plain(name, to);
    }
    const Nf4Weight w = Nf4At(static_cast<uint8_t*>(memory_.GetOrNull("load.nf4")), to.rows, to.cols, nullptr);
    LH_RETURN_IF_ERROR(Codes(name, w));
    kernels::Nf4Dequantize(exec_, w, 0, to);
    return absl::OkStatus();
  }

  // The codes: made, or where they are stored those.
  absl::Status Codes(const std::string& name, const Nf4Weight& w) {
    if (source_.Type(name) != StoredAs::kNf4) return Quantise(name, w);
    const formats::Nf4View stored = *source_.Nf4(name);
    LH_CHECK(stored.state->elements() == w.out * w.in, name);
    if (!IsOurs(stored)) {
      return MakeError(
          absl::StatusCode::kUnimplemented, "MODEL_UNSUPPORTED",
          name + " is stored in NF4 of " + std::to_string(stored.state->block_size) + " values a scale, its scales " +
              (stored.state->nested ? "quantised by another table or block than bitsandbytes' own" : "not quantised") +
              "; in 4 bits a GPU keeps what bitsandbytes makes with double quantisation and 64 values a "
              "scale. Train with base as_stored");
    }
    exec_.Upload(w.packed, stored.packed, Nf4PackedBytes(w.out * w.in));
    exec_.Upload(w.absmax_codes, stored.absmax, w.blocks());
    exec_.Upload(w.nested_absmax, stored.nested_absmax, Nf4Blocks(w.blocks(), kNf4NestedBlocks) * 4);
    exec_.Upload(w.nested_offset, &stored.state->nested_offset, 4);
    return absl::OkStatus();
  }

  static bool IsOurs(const formats::Nf4View& stored) {
    const formats::Nf4QuantState& state = *stored.state;
    return state.nested && state.block_size == kNf4Block && state.nested_block_size == kNf4NestedBlocks &&
           std::equal(kNf4NestedCodes.begin(), kNf4NestedCodes.end(), stored.nested_map);
  }

  absl::Status Quantise(const std::string& name, Nf4Weight w) {
    w.absmax = static_cast<float*>(memory_.GetOrNull("load.absmax"));
    int64_t* const bad = &ScalarsOf(memory_)->non_finite_weights;
    LH_RETURN_IF_ERROR(Chunks(name, w.out, w.in, [&](const Tensor& rows, int64_t begin) {
      kernels::CountNonFinite(exec_, rows, bad);
      Nf4Weight part = w;
      part.out = rows.rows;
      part.packed += begin * w.in / 2;
      part.absmax += begin * w.in / w.block;
      part.absmax_codes = nullptr;
      kernels::Nf4Quantize(exec_, rows, part);
    }));
    kernels::Nf4NestAbsmax(exec_, w, /*keep_offset=*/false);
    return CheckFinite(name);
  }

  // Of all that was counted so far `name` is the last: a wait for each tensor is nothing beside reading it.
  absl::Status CheckFinite(const std::string& name) {
    int64_t bad = 0;
    exec_.Download(&bad, &ScalarsOf(memory_)->non_finite_weights, sizeof(bad));
    exec_.Synchronize();
    if (bad == 0) return absl::OkStatus();
    return MakeError(absl::StatusCode::kInvalidArgument, "INVALID_MODEL",
                     std::to_string(bad) + " of the values of " + name +
                         " are not finite (NaN, or too large for what they are kept in): the file is damaged, or of a "
                         "training that diverged");
  }

  // body(rows in device memory, their first row) over all rows, in whole blocks of NF4.
  template <typename Body>
  absl::Status Chunks(const std::string& name, int64_t rows, int64_t cols, const Body& body) {
    const int64_t most = memory_.BytesOrZero("load.rows") / 4 / cols / kNf4Block * kNf4Block;
    LH_CHECK(most > 0, name);
    for (int64_t begin = 0; begin < rows; begin += most) {
      const int64_t end = std::min(rows, begin + most);
      const Tensor chunk = memory_.Home("load.rows").Matrix("load.rows", DType::kF32, end - begin, cols);
      if (const auto made_up = source_.Uniform(name); made_up.has_value()) {
        kernels::Uniform(exec_, made_up->key, begin, made_up->width, made_up->shift, chunk);
      } else {
        host_.resize(static_cast<size_t>((end - begin) * cols));
        LH_RETURN_IF_ERROR(Read(name, begin, end, cols));
        exec_.Upload(chunk.data, host_.data(), chunk.bytes());
      }
      body(chunk, begin);
    }
    return absl::OkStatus();
  }

  // Rows [begin, end) to host_, by the plan's threads; the first error wins.
  absl::Status Read(const std::string& name, int64_t begin, int64_t end, int64_t cols) {
    const int64_t step = std::max<int64_t>(1, kReadElements / cols);
    absl::Status first;
    std::mutex mutex;  // guards first
#pragma omp parallel for schedule(dynamic, 1) num_threads(memory_.plan().choices.cpu_threads)
    for (int64_t at = begin; at < end; at += step) {
      const absl::Status status =
          source_.ReadRows(name, at, std::min(end, at + step), host_.data() + (at - begin) * cols);
      if (!status.ok()) {
        std::lock_guard<std::mutex> lock(mutex);
        if (first.ok()) first = status;
      }
    }
    return first;
  }

  const WeightSource& source_;
  const EngineMemory& memory_;
  const kernels::Exec& exec_;
  std::vector<float> host_;
};

}  // namespace

std::vector<Nf4Weight> QuantisedParts(const EngineMemory& memory, int64_t layer, FusedLinear linear) {
  const MemoryPlan& plan = memory.plan();
  LH_CHECK(layer >= plan.choices.cached_layers);
  auto* next = static_cast<uint8_t*>(memory.GetOrNull("weights.nf4"));
  int64_t layer_bytes = 0;
  for (int i = 0; i < kFusedLinears; ++i) {
    const int64_t bytes = Nf4LinearBytes(plan.shape, static_cast<FusedLinear>(i));
    if (i < static_cast<int>(linear)) next += bytes;
    layer_bytes += bytes;
  }
  next += (layer - plan.choices.cached_layers) * layer_bytes;
  const FusedParts parts = PartsOf(plan.shape, linear);
  const int64_t in = FusedIn(plan.shape, linear);
  std::vector<Nf4Weight> quantised;
  for (int i = 0; i < parts.count; ++i) {
    quantised.push_back(Nf4At(next, parts.parts[i].out, in, nullptr));
    next += Nf4BytesOf(parts.parts[i].out, in).total;
  }
  return quantised;
}

void* CachedWeight(const EngineMemory& memory, int64_t layer, FusedLinear linear) {
  const MemoryPlan& plan = memory.plan();
  if (layer >= plan.choices.cached_layers) return nullptr;
  int64_t offset = layer * CachedLayerBytes(plan.shape, plan.train);
  for (int i = 0; i < static_cast<int>(linear); ++i) {
    offset += CachedLinearBytes(plan.shape, plan.train, static_cast<FusedLinear>(i));
  }
  return static_cast<char*>(memory.GetOrNull("weights.cache")) + offset;
}

void* AdapterBlock(const EngineMemory& memory, int64_t layer, FusedLinear linear) {
  const MemoryPlan& plan = memory.plan();
  if (!ComputesInFp8(plan)) return nullptr;
  int64_t before = 0, all = 0;
  for (int i = 0; i < kFusedLinears; ++i) {
    const int64_t bytes = PlanFp8Linear(plan.shape, plan.train, static_cast<FusedLinear>(i)).adapter_bytes();
    if (i < static_cast<int>(linear)) before += bytes;
    all += bytes;
  }
  return static_cast<char*>(memory.GetOrNull("weights.adapter")) + layer * all + before;
}

absl::Status LoadCudaWeights(const WeightSource& source, const EngineMemory& memory, const ModelWeights& weights) {
  const ModelShape& s = memory.plan().shape;
  const kernels::Exec& exec = memory.exec();
  CudaLoader loader(source, memory);
  StepScalars scalars;
  exec.Upload(ScalarsOf(memory), &scalars, sizeof(scalars));
  for (int64_t i = 0; i < s.layers; ++i) {
    for (int linear = 0; linear < kFusedLinears; ++linear) {
      LH_RETURN_IF_ERROR(loader.Linear(i, static_cast<FusedLinear>(linear)));
    }
    const LayerWeights& w = weights.layers[static_cast<size_t>(i)];
    const std::string prefix = "model.layers." + std::to_string(i) + ".";
    LH_RETURN_IF_ERROR(loader.Plain(prefix + "input_layernorm.weight", w.norm1));
    LH_RETURN_IF_ERROR(loader.Plain(prefix + "post_attention_layernorm.weight", w.norm2));
    if (!s.qk_norm) continue;
    LH_RETURN_IF_ERROR(loader.Plain(prefix + "self_attn.q_norm.weight", w.q_norm));
    LH_RETURN_IF_ERROR(loader.Plain(prefix + "self_attn.k_norm.weight", w.k_norm));
  }
  LH_RETURN_IF_ERROR(loader.Plain("model.norm.weight", weights.final_norm));
  const char* const embedding = "model.embed_tokens.weight";
  void* const away = memory.GetOrNull("weights.head.host");
  const Tensor head =
      kernels::MakeTensor(away != nullptr ? away : weights.head.forward, DType::kBF16, s.vocab, s.hidden);
  LH_RETURN_IF_ERROR(loader.Plain(s.tied_embeddings ? embedding : "lm_head.weight", head));
  return s.tied_embeddings ? absl::OkStatus() : loader.Plain(embedding, weights.embedding);
}

}  // namespace longhaul::train
