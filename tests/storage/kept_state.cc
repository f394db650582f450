#include "tests/storage/kept_state.h"

#include "base/hash.h"
#include "base/status_macros.h"

namespace longhaul::storage {
namespace {

using namespace server;  // NOLINT: the domain's values are this file's subject

BlobRef BlobOf(const std::string& content) { return {Sha256Hex(content), static_cast<int64_t>(content.size())}; }

Job MakeJob(int number) {
  const std::string n = std::to_string(number);
  Job job;
  job.id = "ftjob-kept" + n;
  job.project = number % 2 == 0 ? "default" : "research";
  job.suffix = "suffix" + n;
  job.request_id = "request-" + n;
  job.labels = {{"team", number % 3 == 0 ? "a" : "b"}, {"number", n}};
  job.metadata = {{"note", "kept \xc3\xa4 " + n}};
  job.spec = std::string("spec\0bytes ", 11) + n;
  job.resolved_spec = "resolved " + n;
  job.model = "model-" + std::to_string(number % 4);
  job.model_digest = "digest-" + std::to_string(number % 4);
  job.inputs = {BlobOf("dataset " + std::to_string(number % 5))};
  job.priority = static_cast<PriorityClass>(1 + number % 3);
  job.device_share = static_cast<DeviceShare>(1 + number % 3);
  job.device_share_bytes = int64_t{number} << 32;
  job.create_wall_micros = kKeptWallMicros + number * 1'000'000;
  // The clock was set back between two jobs, as clocks are.
  if (number == 7) job.create_wall_micros -= 90'000'000;
  job.deadline_wall_micros = number % 2 == 0 ? 0 : kKeptWallMicros + int64_t{86'400'000'000};
  job.create_number = static_cast<uint64_t>(number);
  job.train_shape.sequence_length = 4096;
  job.total_steps = 100 + number;
  job.state = static_cast<JobState>(number);
  job.reason = number == 11 ? Reason::kNonFiniteLoss : Reason::kNone;
  job.reason_detail = "detail " + n;
  job.validated = number > 1;
  job.lease_epoch = number;
  job.sequence = 3;
  return job;
}

void AddAttempts(KeptJob* kept) {
  Job& job = kept->job;
  const bool open = IsActive(job.state) && job.state != JobState::kValidating;
  if (job.state == JobState::kValidating) return;
  Attempt attempt;
  attempt.number = 1;
  attempt.kind = AttemptKind::kTrain;
  attempt.worker_id = "worker-1";
  attempt.device_id = "cpu-0";
  attempt.device_class = "cpu-avx512-8t";
  attempt.plan_point = PlanPoint::kBalanced;
  attempt.lease_epoch = job.lease_epoch;
  attempt.start_wall_micros = job.create_wall_micros + 5;
  attempt.host_bytes_planned = int64_t{1} << 30;
  attempt.cpu_threads_planned = 2;
  if (!open) {
    attempt.end_wall_micros = job.create_wall_micros + 500;
    attempt.outcome = AttemptOutcome::kStopped;
    attempt.message = "stopped";
  }
  job.attempts = 1;
  job.attempt = attempt;
  kept->attempts.push_back(attempt);
}

KeptJob MakeKeptJob(int number) {
  KeptJob kept;
  kept.job = MakeJob(number);
  Job& job = kept.job;
  AddAttempts(&kept);
  for (int64_t i = 1; i <= 3; ++i) {
    JobEvent event;
    event.sequence = i;
    event.wall_micros = job.create_wall_micros + i;
    event.type = i == 2 ? EventType::kWarning : EventType::kState;
    event.from_state = JobState::kValidating;
    event.state = i == 3 ? job.state : JobState::kValidating;
    event.message = "event " + std::to_string(i);
    kept.events.push_back(event);
  }
  if (number > 3 && number % 2 == 0) {
    for (const int64_t step : {int64_t{10}, int64_t{20}}) {
      Checkpoint checkpoint;
      checkpoint.step = step;
      checkpoint.attempt = 1;
      checkpoint.eval_loss = 1.0 / static_cast<double>(step);
      checkpoint.plan_signature = "signature";
      checkpoint.files = {{"adapter.bin", BlobOf("checkpoint " + std::to_string(number * 100 + step))},
                          {"optimizer.bin", BlobOf("optimizer shared")}};
      checkpoint.commit_wall_micros = job.create_wall_micros + step;
      kept.checkpoints.push_back(checkpoint);
    }
    job.last_checkpoint = kept.checkpoints.back();
    for (int64_t step = 1; step <= 600; ++step) {
      kept.metrics.push_back({1, step, "progress of step " + std::to_string(step), 0, 0});
    }
  }
  if (job.state == JobState::kSucceeded) {
    job.artifact = {{"adapter_model.safetensors", BlobOf("artifact")}, {"README.md", BlobOf("card")}};
    job.artifact_wall_micros = job.create_wall_micros + 400;
    job.result = "result";
  }
  if (IsTerminal(job.state)) job.end_wall_micros = job.create_wall_micros + 600;
  if (job.state == JobState::kFailed) job.failure = {Reason::kNonFiniteLoss, "the loss is not finite", true, "tail"};
  return kept;
}

Worker MakeWorker(const std::string& id, bool draining) {
  Worker worker;
  worker.id = id;
  worker.host_name = id + ".example";
  worker.build = "0.1.0";
  worker.plan_version = 1;
  DeviceEntry device;
  device.id = "cpu-0";
  device.facts.device_class = "cpu-avx512-8t";
  device.facts.host_bytes = int64_t{32} << 30;
  device.facts.cpu_threads = 8;
  worker.devices = {device};
  ModelEntry model;
  model.name = "model-1";
  model.digest = "digest-1";
  model.size_bytes = 1234;
  worker.models = {model};
  worker.host_bytes_total = int64_t{32} << 30;
  worker.disk_bytes_total = int64_t{100} << 30;
  worker.cpu_threads_total = 8;
  worker.draining = draining;
  return worker;
}

}  // namespace

KeptState MakeKeptState() {
  KeptState state;
  for (int number = 1; number <= kJobStates; ++number) {
    state.jobs.push_back(MakeKeptJob(number));
    const Job& job = state.jobs.back().job;
    state.keys.push_back({job.project, job.request_id, Sha256Hex(job.spec), job.id, job.create_wall_micros});
    for (const BlobRef& blob : job.inputs) state.blobs.push_back(blob);
    for (const NamedBlob& file : job.artifact) state.blobs.push_back(file.blob);
    for (const Checkpoint& checkpoint : state.jobs.back().checkpoints) {
      for (const NamedBlob& file : checkpoint.files) state.blobs.push_back(file.blob);
    }
  }
  // The key of a deleted job outlives it.
  state.keys.push_back({"default", "request-deleted", Sha256Hex("x"), "ftjob-deleted", kKeptWallMicros});
  state.workers = {MakeWorker("worker-1", false), MakeWorker("worker-2", true)};
  state.blobs.push_back(BlobOf("of nobody"));
  state.contents = {"artifact", "card", "optimizer shared", "of nobody"};
  for (int i = 0; i < 5; ++i) state.contents.push_back("dataset " + std::to_string(i));
  for (int number = 4; number <= kJobStates; number += 2) {
    for (const int step : {10, 20}) state.contents.push_back("checkpoint " + std::to_string(number * 100 + step));
  }
  return state;
}

absl::Status WriteKeptState(const KeptState& state, Store* store) {
  LH_ASSIGN_OR_RETURN(const std::unique_ptr<StoreTransaction> tx, store->Begin());
  for (const BlobRef& blob : state.blobs) LH_RETURN_IF_ERROR(tx->PutBlob(blob, kKeptWallMicros));
  for (const KeptJob& kept : state.jobs) {
    LH_RETURN_IF_ERROR(tx->PutJob(kept.job));
    for (const JobEvent& event : kept.events) LH_RETURN_IF_ERROR(tx->AddEvent(kept.job.id, event));
    for (const Attempt& attempt : kept.attempts) LH_RETURN_IF_ERROR(tx->PutAttempt(kept.job.id, attempt));
    for (const Checkpoint& checkpoint : kept.checkpoints) {
      LH_RETURN_IF_ERROR(tx->PutCheckpoint(kept.job.id, checkpoint));
    }
    if (!kept.metrics.empty()) LH_RETURN_IF_ERROR(tx->PutMetrics(kept.job.id, kept.metrics));
  }
  for (const RequestKey& key : state.keys) LH_RETURN_IF_ERROR(tx->PutRequestKey(key));
  for (const Worker& worker : state.workers) LH_RETURN_IF_ERROR(tx->PutWorker(worker));
  return tx->Commit();
}

}  // namespace longhaul::storage
