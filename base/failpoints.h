// Named places where a test makes the process fail. Armed by the environment variable
// LONGHAUL_FAILPOINTS="name=crash,name2=error@3,name3=sleep:50*2" (sleep in ms) or by ArmFailpoint. Disarmed: one
// atomic load. `@N`: only the N-th time that it is reached from then on; `*N`: the first N times; neither: each time.
//
// Every place, at each commit and each send; tests/check_tree.py holds this table against the code:
//   dispatcher_before_commit      a batch is applied, nothing of it durable
//   dispatcher_after_commit       durable, nobody knows
//   dispatcher_before_publish     durable, memory is up to date, no event is out
//   dispatcher_before_answer      events are out; before the answer of each command
//   dispatcher_before_sync        before the answer of a parked Sync, leases and commands with it
//   store_begin, store_commit     SQLite's transaction
//   access_commit, migration_commit    those of the tokens with their audit records, and of a newer schema
//   blob_append, blob_before_sync, blob_before_rename, blob_after_rename    an upload
//   log_append                    an attempt's log
//   blob_before_chunk, log_before_chunk    before a reader gets a piece
//   backup_before_mark            a folder is about to become a backup's
//   backup_after_mark, backup_before_database, backup_after_database
//   watch_before_event            before a watcher gets an event
//   agent_before_open, agent_before_sync, agent_after_sync     the agent's session
//   agent_before_fetch, agent_before_blob, agent_before_chunk    a download, an upload and each piece of one
//   agent_before_checkpoint, agent_after_checkpoint, agent_before_artifact, agent_after_artifact
//   agent_before_log, agent_after_log    the scheduler has the bytes, the agent does not know
//   agent_trainer_spawned         the trainer runs, its pid is not written down
//   agent_spec_removed            an attempt's end is acknowledged, its folder is about to go
//   train_step_N                  after that step's event; N is a number
//   cuda_wrong_token              a micro-batch on a GPU gets a token that the model does not have: the device faults
//   cuda_copy_out, cuda_copy_in   on the stream, before a copy beside the ops begins: to the host, to the device
//   train_checkpoint_written, train_artifact_written, trainer_after_step, checkpoint_between_files    the trainer
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/status.h"

namespace longhaul {

// crash: raises SIGKILL on ourselves. error: returns UNAVAILABLE naming the failpoint. sleep: sleeps, or until it is
// armed anew or disarmed, then OK.
absl::Status Failpoint(std::string_view name);
// Arms it anew: its hits count from 0.
void ArmFailpoint(const std::string& name, const std::string& action);
// Whether it is armed: for places that reach it by a detour, which takes time.
bool FailpointIsArmed(std::string_view name);
// How often an armed failpoint was reached; 0 where it is not armed.
int64_t FailpointHits(std::string_view name);
void DisarmFailpoints();

}  // namespace longhaul
