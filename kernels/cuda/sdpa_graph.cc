#include "kernels/cuda/sdpa_graph.h"

#define CUDNN_FRONTEND_SKIP_JSON_LIB
#include <cudnn_frontend.h>

#include <array>
#include <vector>

#include "base/check.h"
#include "base/error.h"
#include "kernels/cuda_error.h"

namespace longhaul::kernels::cuda {
namespace {

namespace fe = cudnn_frontend;
using Tensor = std::shared_ptr<fe::graph::Tensor_attributes>;
using Attributes = fe::graph::Tensor_attributes;

constexpr const char* kOp = "Sdpa";

// Every pointer that a pass may take. A tensor's uid is its slot + 1, so that the library's order is ours.
enum Slot {
  kQ,
  kK,
  kV,
  kO,
  kStats,
  kDO,
  kDQ,
  kDK,
  kDV,
  kQOffsets,
  kKOffsets,
  kVOffsets,
  kOOffsets,
  kDOOffsets,
  kDQOffsets,
  kDKOffsets,
  kDVOffsets,
  kStatsOffsets,
  kLengthsQ,
  kLengthsKv,
  kSlots
};

absl::Status Unsupported(const SdpaShape& shape, bool backward, const std::string& why) {
  return MakeError(absl::StatusCode::kUnimplemented, "SDPA_UNSUPPORTED",
                   std::string("cuDNN has no ") + (backward ? "backward" : "forward") + " kernel for " +
                       SdpaKey(shape) + ": " + why);
}

class Builder {
 public:
  Builder(const Cudnn& cudnn, const SdpaShape& shape, fe::graph::Graph* graph)
      : shape_(shape),
        stats_are_rows_(SdpaStatsAreRows(shape, cudnn.device())),
        ragged_(shape.layout == SdpaLayout::kRagged),
        graph_(graph) {
    graph->set_io_data_type(fe::DataType_t::BFLOAT16)
        .set_intermediate_data_type(fe::DataType_t::FLOAT)
        .set_compute_data_type(fe::DataType_t::FLOAT);
  }

  void Forward() {
    auto options = fe::graph::SDPA_attributes().set_name("forward").set_generate_stats(true);
    SetMask(&options);
    const Tensor q = Queries(kQ, kQOffsets, shape_.q_stride), k = Keys(kK, kKOffsets, shape_.k_stride),
                 v = Keys(kV, kVOffsets, shape_.v_stride);
    const auto [o, stats] = graph_->sdpa(q, k, v, options);
    Output(o, QueryMatrix(kO, kOOffsets, shape_.o_stride));
    Output(stats, Stats());
  }

  void Backward() {
    auto options = fe::graph::SDPA_backward_attributes().set_name("backward");
    options.set_deterministic_algorithm(shape_.deterministic);
    SetMask(&options);
    if (ragged_) options.set_max_total_seq_len_q(shape_.tokens_q).set_max_total_seq_len_kv(shape_.tokens_kv);
    const Tensor q = Queries(kQ, kQOffsets, shape_.q_stride), k = Keys(kK, kKOffsets, shape_.k_stride),
                 v = Keys(kV, kVOffsets, shape_.v_stride), o = Queries(kO, kOOffsets, shape_.o_stride),
                 d_o = Queries(kDO, kDOOffsets, shape_.d_o_stride);
    const auto [dq, dk, dv] = graph_->sdpa_backward(q, k, v, o, d_o, graph_->tensor(Stats()), options);
    Output(dq, QueryMatrix(kDQ, kDQOffsets, shape_.dq_stride));
    Output(dk, KeyMatrix(kDK, kDKOffsets, shape_.dk_stride));
    Output(dv, KeyMatrix(kDV, kDVOffsets, shape_.dv_stride));
  }

  // The slots used, ascending: the library takes their pointers in the order of uids.
  std::vector<int> slots() const {
    std::vector<int> used;
    for (int slot = 0; slot < kSlots; ++slot) {
      if (used_[static_cast<size_t>(slot)]) used.push_back(slot);
    }
    return used;
  }

 private:
  template <typename Options>
  void SetMask(Options* options) {
    options->set_attn_scale(static_cast<float>(shape_.scale));
    options->set_diagonal_alignment(shape_.queries_last ? fe::DiagonalAlignment_t::BOTTOM_RIGHT
                                                        : fe::DiagonalAlignment_t::TOP_LEFT);
    options->set_diagonal_band_right_bound(0);
    // The library keeps column + bound > row: exactly query - window < key.
    if (shape_.window > 0) options->set_diagonal_band_left_bound(static_cast<int>(shape_.window));
    if (shape_.layout != SdpaLayout::kDense) {
      options->set_padding_mask(true)
          .set_seq_len_q(Index(kLengthsQ, shape_.batch, fe::DataType_t::INT32))
          .set_seq_len_kv(Index(kLengthsKv, shape_.batch, fe::DataType_t::INT32));
    }
  }

  Tensor Index(Slot slot, int64_t count, fe::DataType_t type) {
    used_[slot] = true;
    return graph_->tensor(
        Attributes().set_uid(slot + 1).set_dim({count, 1, 1, 1}).set_stride({1, 1, 1, 1}).set_data_type(type));
  }

  Attributes Matrix(Slot slot, Slot offsets, int64_t heads, int64_t rows, int64_t stride) {
    used_[slot] = true;
    Attributes matrix;
    matrix.set_uid(slot + 1)
        .set_dim({shape_.batch, heads, rows, shape_.head_dim})
        .set_stride({rows * stride, shape_.head_dim, stride, 1})
        .set_data_type(fe::DataType_t::BFLOAT16);
    if (ragged_) matrix.set_ragged_offset(Index(offsets, shape_.batch + 1, fe::DataType_t::INT64));
    return matrix;
  }
  Attributes QueryMatrix(Slot slot, Slot offsets, int64_t stride) {
    return Matrix(slot, offsets, shape_.heads, shape_.max_q, stride);
  }
  Attributes KeyMatrix(Slot slot, Slot offsets, int64_t stride) {
    return Matrix(slot, offsets, shape_.kv_heads, shape_.max_kv, stride);
  }
  Tensor Queries(Slot slot, Slot offsets, int64_t stride) { return graph_->tensor(QueryMatrix(slot, offsets, stride)); }
  Tensor Keys(Slot slot, Slot offsets, int64_t stride) { return graph_->tensor(KeyMatrix(slot, offsets, stride)); }
  Attributes Stats() {
    used_[kStats] = true;
    Attributes stats;
    stats.set_uid(kStats + 1)
        .set_dim({shape_.batch, shape_.heads, shape_.max_q, 1})
        .set_data_type(fe::DataType_t::FLOAT);
    if (stats_are_rows_) {
      stats.set_stride({shape_.max_q * shape_.heads, 1, shape_.heads, 1})
          .set_ragged_offset(Index(kStatsOffsets, shape_.batch + 1, fe::DataType_t::INT64));
    } else {
      stats.set_stride({shape_.heads * shape_.max_q, shape_.max_q, 1, 1});
    }
    return stats;
  }

  // Gives a result of the library the properties of ours.
  static void Output(const Tensor& result, Attributes as) {
    result->set_output(true)
        .set_uid(as.get_uid())
        .set_dim(as.get_dim())
        .set_stride(as.get_stride())
        .set_data_type(as.get_data_type());
    if (as.get_ragged_offset()) result->set_ragged_offset(as.get_ragged_offset());
  }

  const SdpaShape& shape_;
  const bool stats_are_rows_;
  const bool ragged_;
  fe::graph::Graph* const graph_;
  std::array<bool, kSlots> used_{};
};

}  // namespace

struct SdpaGraph::Impl {
  fe::graph::Graph graph;
  std::vector<int> slots;
  SdpaShape shape;
};

SdpaGraph::SdpaGraph() : impl_(std::make_unique<Impl>()) {}
SdpaGraph::~SdpaGraph() = default;

absl::StatusOr<std::unique_ptr<SdpaGraph>> SdpaGraph::Build(const Cudnn& cudnn, const SdpaShape& shape, bool backward) {
  // Up to 9.15 the library would mask the last keys by lengths that it copies from the host in every call.
  if (shape.layout == SdpaLayout::kDense && shape.max_kv % 128 != 0) {
    return Unsupported(shape, backward, "dense sequences must be multiples of 128 rows; give lengths (padded) instead");
  }
  std::unique_ptr<SdpaGraph> built(new SdpaGraph);
  Impl& impl = *built->impl_;
  impl.shape = shape;
  Builder builder(cudnn, shape, &impl.graph);
  if (backward) {
    builder.Backward();
  } else {
    builder.Forward();
  }
  impl.slots = builder.slots();
  auto error = impl.graph.build(cudnn.handle(), {fe::HeurMode_t::A});
  if (error.is_good()) error = impl.graph.get_workspace_size(built->workspace_bytes_);
  if (error.is_good()) error = impl.graph.get_plan_name(built->name_);
  if (!error.is_good()) return Unsupported(shape, backward, error.get_message());
  return built;
}

void SdpaGraph::Execute(const Cudnn& cudnn, const SdpaBuffers& buffers, void* workspace) const {
  const auto index = [&](SdpaIndex array) -> const void* {
    return static_cast<const char*>(buffers.index) + SdpaIndexOffset(impl_->shape, array);
  };
  std::array<const void*, kSlots> all{buffers.q,   buffers.k,  buffers.v,  buffers.o, buffers.stats,
                                      buffers.d_o, buffers.dq, buffers.dk, buffers.dv};
  if (impl_->shape.layout == SdpaLayout::kRagged) {
    LH_CHECK(buffers.index != nullptr);
    for (int i = 0; i < kSdpaOffsetArrays; ++i) all[static_cast<size_t>(kQOffsets + i)] = index(SdpaIndex{i});
    all[kLengthsQ] = index(SdpaIndex::kLengthsQ);
    all[kLengthsKv] = index(SdpaIndex::kLengthsKv);
  } else {
    all[kLengthsQ] = buffers.lengths_q;
    all[kLengthsKv] = buffers.lengths_kv;
  }
  std::array<void*, kSlots> pointers{};
  int count = 0;
  for (const int slot : impl_->slots) {
    LH_CHECK(all[static_cast<size_t>(slot)] != nullptr, "attention buffer " + std::to_string(slot));
    pointers[static_cast<size_t>(count++)] = const_cast<void*>(all[static_cast<size_t>(slot)]);
  }
  auto error = impl_->graph.execute(cudnn.handle(), pointers.data(), count, workspace);
  if (!error.is_good()) {
    // The front end's own codes: 2 is a shape that cannot be deduced, not memory.
    throw CudaError(kOp, "cudnn graph " + name_, static_cast<int>(error.get_code()), error.get_message(),
                    CudaShortage::kNone);
  }
}

}  // namespace longhaul::kernels::cuda
