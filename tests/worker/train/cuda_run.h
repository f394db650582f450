// A trainer on CUDA with everything that it reports.
#pragma once

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "base/half.h"
#include "base/limits.h"
#include "tests/worker/train/cuda_rig.h"
#include "worker/train/cuda_ops.h"
#include "worker/train/trainer.h"

namespace longhaul::train {

inline constexpr int64_t kPoisonedToken = 519;

// One token's embedding is not a number any more, as after a fault of memory: samples that contain it are poisoned,
// where the head is not the embedding. (In the files of the base it is refused: cuda_nonfinite_test.cc.)
inline void PoisonToken(const Trainer& trainer) {
  const kernels::Tensor embedding = CarveWeights(trainer.memory()).embedding;
  const int64_t bytes = kernels::DTypeBytes(embedding.dtype);
  const float nan = NAN;
  const uint16_t nan_in_bf16 = FloatToBf16(nan);
  trainer.memory().exec().Upload(static_cast<char*>(embedding.data) + kPoisonedToken * embedding.cols * bytes,
                                 bytes == 2 ? static_cast<const void*>(&nan_in_bf16) : &nan, bytes);
}

struct LateRun final : public TrainerObserver, public TrainerControl {
  void OnProgress(const TrainProgress& p) override {
    progress.push_back(p);
    if (p.step == stop_after) control = at_stop;
  }
  absl::Status OnCheckpoint(const CheckpointInfo& info) override {
    checkpoints.push_back(info);
    return absl::OkStatus();
  }
  void OnWarning(const std::string& text) override { warnings.push_back(text); }
  Control Poll() override { return ++polls >= cancel_at_poll ? Control::kCancel : control; }
  void WaitWhileHeld() override { control = Control::kContinue; }

  std::vector<TrainProgress> progress;
  std::vector<CheckpointInfo> checkpoints;
  std::vector<std::string> warnings;
  int64_t stop_after = -1;
  Control at_stop = Control::kContinue;
  Control control = Control::kContinue;
  int polls = 0;
  int cancel_at_poll = std::numeric_limits<int>::max();
  int64_t most_graph_nodes = limits::kMaxCudaGraphNodes;

  int64_t graph_nodes_before = 0;  // of what was captured while the trainer was made
  int64_t graph_nodes = 0;
  GraphCache::Counts graphs;
  absl::StatusOr<Outcome> outcome = absl::UnknownError("not run");
  TrainerState state;
  std::vector<float> master;
};

}  // namespace longhaul::train
