#include "worker/train/cuda_groups.h"

#include "model/cuda_layout.h"

namespace longhaul::train {
namespace {

using kernels::Tensor;

size_t Index(int64_t layer, FusedLinear linear) {
  return static_cast<size_t>(layer * kFusedLinears + static_cast<int64_t>(linear));
}

// Copies that are not of a tile.
constexpr int64_t kOutputLeft = 0, kStatisticsHere = 1, kFirstTile = 2;

}  // namespace

CudaGroups::CudaGroups(const EngineMemory& memory, kernels::CudaEngine* engine) : memory_(memory), engine_(*engine) {
  const MemoryPlan& plan = memory.plan();
  const int64_t n = PlannedRows(plan);
  tile_rows_ = plan.choices.token_tile_rows;
  stream_row_bytes_ = plan.shape.hidden * 2;
  output_row_bytes_ = FieldOf(plan, Act::kO).stride * 2;
  output_bytes_ = FieldBytes(plan, Act::kO, n);
  statistics_bytes_ = FieldBytes(plan, Act::kLse, n);
  const auto region = [&memory](const char* name) { return static_cast<char*>(memory.GetOrNull(name)); };
  stream_ = region("stream");
  stream_host_ = region("stream.host");
  output_ = region("slot.o");
  statistics_ = region("slot.lse");
  output_host_ = region("kept_attention.host");
  fetched_.resize(static_cast<size_t>((n + tile_rows_ - 1) / tile_rows_), false);
}

void CudaGroups::BeginGroup(int64_t layer, int64_t group) {
  engine_.BeginGroup(Index(layer, FusedLinear::kQkv), group);
}

void CudaGroups::Project(int64_t layer, const Tensor& h, const Tensor& u, bool has_u, const Tensor& qkv) {
  engine_.ForwardGroup(Index(layer, FusedLinear::kQkv), h, u, has_u, qkv);
}

void CudaGroups::BeginBackward(int64_t layer) {
  if (statistics_fetched_) engine_.WaitForCopy(Number(kStatisticsHere));
  statistics_fetched_ = false;
  engine_.BeginOutputGradient(Index(layer, FusedLinear::kO));
}

void CudaGroups::OutputGradient(int64_t layer, const Tensor& dy, int64_t first, const Tensor& d_o) {
  engine_.OutputGradient(Index(layer, FusedLinear::kO), dy, first, d_o);
}

void CudaGroups::AttentionForward(int64_t call, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& o,
                                  const Tensor& lse) {
  engine_.CallForward(call, q, k, v, o, lse);
}

void CudaGroups::AttentionBackward(int64_t call, const Tensor& d_o, const Tensor& q, const Tensor& k, const Tensor& v,
                                   const Tensor& o, const Tensor& lse, const Tensor& dq, const Tensor& dk,
                                   const Tensor& dv) {
  engine_.CallBackward(call, d_o, q, k, v, o, lse, dq, dk, dv);
}

bool CudaGroups::Leaves(int64_t layer) const {
  return output_host_ != nullptr && layer >= 0 && layer < memory_.plan().choices.keep_attention_layers;
}

char* CudaGroups::OutputOnHost(int64_t layer) const {
  return output_host_ + layer * (output_bytes_ + statistics_bytes_);
}

size_t CudaGroups::Number(int64_t i) const { return static_cast<size_t>(2 * memory_.plan().shape.layers + i); }

size_t CudaGroups::TileNumber(int64_t begin) const { return Number(kFirstTile + begin / tile_rows_); }

void CudaGroups::BeginAttention() {
  if (leaving_) engine_.WaitForCopy(Number(kOutputLeft));
  leaving_ = false;
}

void CudaGroups::AttentionWritten(int64_t layer) {
  if (!Leaves(layer)) return;
  char* const host = OutputOnHost(layer);
  engine_.CopyOut(Number(kOutputLeft), host, output_, output_bytes_);
  engine_.CopyOut(Number(kOutputLeft), host + output_bytes_, statistics_, statistics_bytes_);
  leaving_ = true;
}

// Copies in follow one another, so the last one's arrival is that of all.
void CudaGroups::Fetch(int64_t layer, int64_t begin, int64_t end) {
  if (layer < 0) return;
  const auto fetch = [&](char* device, const char* host, int64_t row_bytes) {
    engine_.CopyIn(TileNumber(begin), device + begin * row_bytes, host + begin * row_bytes, (end - begin) * row_bytes);
    fetched_.at(static_cast<size_t>(begin / tile_rows_)) = true;
  };
  if (stream_host_ != nullptr) fetch(stream_, stream_host_ + layer * StreamBytes(memory_.plan()), stream_row_bytes_);
  if (!Leaves(layer)) return;
  const char* const host = OutputOnHost(layer);
  fetch(output_, host, output_row_bytes_);
  if (begin > 0) return;
  // Not looked at before the last tile is there.
  engine_.CopyIn(Number(kStatisticsHere), statistics_, host + output_bytes_, statistics_bytes_);
  statistics_fetched_ = true;
}

void CudaGroups::Wait(int64_t begin) {
  std::vector<bool>::reference fetched = fetched_.at(static_cast<size_t>(begin / tile_rows_));
  if (fetched) engine_.WaitForCopy(TileNumber(begin));
  fetched = false;
}

void CudaGroups::Forget() {
  leaving_ = statistics_fetched_ = false;
  fetched_.assign(fetched_.size(), false);
}

}  // namespace longhaul::train
