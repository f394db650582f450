#include "worker/train/rehearsal.h"

#include <algorithm>
#include <set>

#include "model/cuda_layout.h"

namespace longhaul::train {
namespace {

// Asked before each layer.
KeepGoing OneLayer(int* layers) {
  *layers = 1;
  return [layers] { return (*layers)-- > 0; };
}

void RehearsePass(const EngineMemory& memory, const TokenBatch& batch, EngineOps* ops, Decoder* decoder,
                  CutCrossEntropy* loss) {
  int layers = 0;
  const TokenBatch brought = ops->Bring(batch);
  loss->Prepare(batch, 1);
  decoder->Forward(brought, OneLayer(&layers));
  loss->Queue(decoder->Stream(memory.plan().shape.layers, brought.rows), decoder->DStream(brought.rows));
  decoder->Backward(brought, OneLayer(&layers));
  // The next pass's batch takes this one's place.
  memory.exec().Synchronize();
}

}  // namespace

std::vector<int64_t> RowsToRehearse(const MemoryPlan& plan) {
  std::vector<int64_t> all;
  std::set<int64_t> of_tokens{0}, of_loss{0};  // 0: there is no such tile
  for (int64_t rows = kCudaRowUnit; rows <= PlannedRows(plan); rows += kCudaRowUnit) {
    bool is_new = false;
    const auto cut = [&](std::set<int64_t>* lengths, int64_t tile) {
      for (const int64_t length : {std::min(rows, tile), rows % tile}) is_new |= lengths->insert(length).second;
    };
    cut(&of_tokens, plan.choices.token_tile_rows);
    cut(&of_loss, LossRows(plan));
    if (is_new || (plan.choices.grouped_attention && rows == PlannedRows(plan))) all.push_back(rows);
  }
  return all;
}

absl::Status Rehearse(const EngineMemory& memory, double dropout, EngineOps* ops, Decoder* decoder,
                      CutCrossEntropy* loss) {
  const MemoryPlan& plan = memory.plan();
  const std::vector<int32_t> zeros(static_cast<size_t>(PlannedRows(plan)), 0);
  ops->BeginRehearsal();
  for (const int64_t rows : RowsToRehearse(plan)) {
    const int64_t offsets[] = {0, rows};
    const TokenBatch batch{rows, zeros.data(), zeros.data(), zeros.data(), offsets, 1};
    // Evaluations are without.
    if (dropout > 0) {
      ops->SetDropout(dropout, 0);
      RehearsePass(memory, batch, ops, decoder, loss);
    }
    ops->SetDropout(0, 0);
    RehearsePass(memory, batch, ops, decoder, loss);
  }
  return ops->EndRehearsal();
}

}  // namespace longhaul::train
