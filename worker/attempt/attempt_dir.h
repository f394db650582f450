// One attempt's folder: the whole protocol between the agent and the trainer, and it outlives both. The files and who
// writes them are listed in proto/longhaul/v1/trainer.proto. Besides those, `lock` is held (flock) by the trainer for
// its life, so that a folder never has two, and `agent` is the agent's own note of what the scheduler already has.
//
// A value: only paths, no open files. Thread-safe: no state. Errors: absl::Status that names the file.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/process.h"
#include "longhaul/v1/trainer.pb.h"

namespace longhaul::attempt {

// A file of a checkpoint or an artifact: one path component of [A-Za-z0-9._-], not starting with a dot. Whatever comes
// from outside as a name passes here before it meets a path, so it never leaves its folder. INVALID_ARGUMENT,
// FILE_NAME.
absl::Status ValidateFileName(std::string_view name);

// What the scheduler has of an attempt, so that a restarted agent neither repeats nor forgets.
struct AgentNote {
  int64_t committed_step = 0;  // of the newest committed checkpoint; 0 = none
  bool artifact_committed = false;
  // Bytes of the trainer's output that the scheduler's log lacks before its end: stream offset = log offset + this.
  // Below 0 where the line that says so is longer than what is missing.
  int64_t log_missing_bytes = 0;
  // Of events.log, an event's beginning: what is told once stands before it and is with the scheduler. A restarted
  // agent reads on from here.
  int64_t events_bytes = 0;
  // What the events before it, and perhaps later ones, have said.
  bool started = false;
  bool held = false;
  bool finalizing = false;
  int64_t step_ms = 0;  // of the last one
  int64_t host_bytes_peak = 0;
  int64_t device_bytes_peak = 0;
};

// Names this boot of the host: what CLOCK_BOOTTIME counts from is another moment under another one.
const std::string& BootId();

class AttemptDir {
 public:
  explicit AttemptDir(std::string path) : path_(std::move(path)) {}

  const std::string& path() const { return path_; }
  std::string SpecPath() const { return At("spec.textproto"); }
  std::string LeasePath() const { return At("lease"); }
  std::string PidPath() const { return At("pid"); }
  std::string LockPath() const { return At("lock"); }
  std::string EventsPath() const { return At("events.log"); }
  std::string StderrPath() const { return At("stderr.log"); }
  std::string AgentNotePath() const { return At("agent"); }
  std::string InputsDir() const { return At("inputs"); }
  std::string DatasetPath() const { return At("inputs/dataset.jsonl"); }
  std::string EvalDatasetPath() const { return At("inputs/eval.jsonl"); }
  std::string ResumeDir() const { return At("inputs/checkpoint"); }
  std::string CheckpointsDir() const { return At("checkpoints"); }
  std::string CheckpointDir(int64_t step) const { return At("checkpoints/step-" + std::to_string(step)); }
  std::string ArtifactDir() const { return At("artifact"); }
  // A checkpoint of the trainer is not whole yet (step-N.partial is there). Of a trainer that has died it says nothing.
  bool WritesCheckpoint() const;

  // The folder with inputs/, checkpoints/ and artifact/. Existing is OK.
  absl::Status Create() const;
  // The folder of an attempt that has ended, and of which all that counts is told. Absent is OK. The spec goes first,
  // durably: whatever is left after a crash is the folder of no attempt, and nobody runs it again.
  absl::Status Remove() const;

  // NOT_FOUND where the file is absent; DATA_LOSS, reason ATTEMPT_DIR, where it cannot be parsed.
  absl::Status WriteSpec(const v1::AttemptSpec& spec) const;
  absl::StatusOr<v1::AttemptSpec> ReadSpec() const;
  // By rename, not synced: the deadline counts from this boot, so a lost file is an expired lease and nothing worse.
  absl::Status WriteLease(const v1::LeaseFile& lease) const;
  absl::StatusOr<v1::LeaseFile> ReadLease() const;
  absl::Status WritePid(const ProcessId& id) const;
  absl::StatusOr<ProcessId> ReadPid() const;
  absl::Status WriteAgentNote(const AgentNote& note) const;
  absl::StatusOr<AgentNote> ReadAgentNote() const;

 private:
  std::string At(const char* name) const { return path_ + "/" + name; }
  std::string At(const std::string& name) const { return path_ + "/" + name; }

  std::string path_;
};

}  // namespace longhaul::attempt
