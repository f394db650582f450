#include "worker/train/evaluate.h"

namespace longhaul::train {

EvalResult Evaluate(EngineOps* ops, Decoder* decoder, CutCrossEntropy* loss, BatchSource* batches, int64_t layers,
                    const KeepGoing& keep_going) {
  ops->SetDropout(0, 0);
  LossSum total;
  for (int64_t update = 0; update < batches->UpdatesPerEpoch(); ++update) {
    const Window window = batches->GetWindow(0, update);
    for (int64_t i = 0; i < window.micro_batches; ++i) {
      const TokenBatch batch = batches->Get(i);
      if (batch.rows == 0) continue;
      const TokenBatch brought = ops->Bring(batch);
      // A pass that is replayed asks nobody.
      bool asked = false;
      const KeepGoing asks = [&] {
        asked = true;
        return keep_going();
      };
      const auto forward = [&] { return decoder->Forward(brought, asks); };
      if (!ops->Queue(EngineOps::Part::kForward, brought.rows, forward)) return {};
      if (!asked && !keep_going()) return {};
      const LossSum part = loss->Run(batch, decoder->Stream(layers, brought.rows), 0, {});
      total.nats += part.nats;
      total.targets += part.targets;
      total.correct += part.correct;
    }
  }
  EvalResult result;
  result.complete = true;
  result.targets = total.targets;
  if (total.targets > 0) {
    result.loss = total.nats / static_cast<double>(total.targets);
    result.accuracy = static_cast<double>(total.correct) / static_cast<double>(total.targets);
  }
  return result;
}

}  // namespace longhaul::train
