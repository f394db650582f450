// A local checkpoint: a folder with state.json and adapter_state.safetensors (masters and both moments, as they lie in
// the arena). Written to a sibling folder, synced, renamed, so that a folder of that name is whole, also while it is
// replaced: the one before is renamed aside first. Reading trusts nothing.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/train/adapter.h"

namespace longhaul::train {

inline constexpr int kCheckpointVersion = 1;

// All that a resume needs besides the arrays; nothing hidden, nothing that depends on when or where it ran.
struct TrainerState {
  int64_t step = 0;  // updates done, skipped ones included
  int64_t total_steps = 0;
  int64_t adam_steps = 0;      // updates applied
  int64_t trained_tokens = 0;  // tokens that went through the model in training
  int64_t skipped_updates = 0;
  int64_t skipped_in_a_row = 0;
  bool training_done = false;  // only the artifact is missing
  double last_loss = 0;        // of the last update
  std::optional<double> eval_before;
  std::optional<double> eval_last;
  int64_t eval_last_step = -1;  // where eval_last was measured
  std::optional<double> eval_best;
  bool eval_pending = false;  // a stop came into the evaluation after `step`: a resume does it first
  double train_seconds = 0;   // of all attempts; for people, no bit depends on it
};

struct CheckpointIdentity {
  std::string plan_signature;  // PlanSignature of the plan that wrote it
  std::string made_with;       // the same for people: threads, ISA, GEMM type and library, tiles, CPU
  std::string run_signature;   // SHA-256 of hyperparameters, data and model: what a resume must share
};

// Names of a checkpoint's files, in the order written.
const std::vector<std::string>& CheckpointFiles();

// Writes `folder`, replacing one of that name, which stays where that fails. DISK_FULL and other errors of the file
// system leave nothing behind.
absl::Status WriteCheckpoint(const std::string& folder, const TrainerState& state, const CheckpointIdentity& identity,
                             const Adapter& adapter);

struct LoadedCheckpoint {
  TrainerState state;
  CheckpointIdentity identity;
};

// Fills the adapter's masters and moments. INVALID_ARGUMENT, reason INVALID_CHECKPOINT, names the file and what is
// wrong; the adapter is then in no defined state.
absl::StatusOr<LoadedCheckpoint> ReadCheckpoint(const std::string& folder, const Adapter& adapter);

}  // namespace longhaul::train
