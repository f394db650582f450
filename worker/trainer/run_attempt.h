// One attempt in its directory, from the loaded spec to the Exit event.
//
// Failpoints: train_step_<n> after update n is told of, train_checkpoint_written and train_artifact_written after their
// events are durable.
#pragma once

#include <functional>
#include <string>

#include "base/clock.h"
#include "longhaul/v1/trainer.pb.h"
#include "worker/attempt/attempt_dir.h"
#include "worker/trainer/events.h"
#include "worker/trainer/inputs.h"
#include "worker/trainer/signals.h"

namespace longhaul::trainer {

struct AttemptContext {
  attempt::AttemptDir dir;
  v1::AttemptSpec spec;
  InputPaths paths;
  const Clock* clock = nullptr;
  SignalInbox* signals = nullptr;
  Events* events = nullptr;
  std::function<void(const std::string&)> log;  // a line for people
  // Nobody uploads the checkpoints: only the newest few stay.
  bool alone = false;
};

// Everything but the Exit event itself, which it returns. No error escapes; exceptions do.
v1::TrainerExit RunAttempt(const AttemptContext& context);

}  // namespace longhaul::trainer
