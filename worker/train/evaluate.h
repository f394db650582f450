// The loss over an evaluation set, by the training's own forward pass and regions: no more memory than a step.
#pragma once

#include "worker/train/batch_source.h"
#include "worker/train/decoder.h"
#include "worker/train/loss.h"

namespace longhaul::train {

struct EvalResult {
  double loss = 0;      // mean nats a trained target
  double accuracy = 0;  // share of targets that are the argmax
  int64_t targets = 0;
  bool complete = false;  // false where keep_going said stop
};

// Every window of epoch 0, without dropout. A set without targets gives loss 0 and targets 0.
EvalResult Evaluate(EngineOps* ops, Decoder* decoder, CutCrossEntropy* loss, BatchSource* batches, int64_t layers,
                    const KeepGoing& keep_going);

}  // namespace longhaul::train
