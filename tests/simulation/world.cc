#include "tests/simulation/world.h"

#include <algorithm>
#include <functional>
#include <memory>
#include <utility>

#include "base/error.h"
#include "tests/fakes/fake_server_parts.h"

namespace longhaul::simulation {

using namespace server;  // NOLINT: the scheduler's parts are this file's subject

namespace {

constexpr size_t kMostJobs = 12;
constexpr int kMostTries = 40;
constexpr int64_t kMostFullNanos = int64_t{3} * 3'600'000 * kMillis;  // leases of a half hour run out in it

Worker MakeWorker(int number) {
  Worker worker = TestWorker("w" + std::to_string(number), int64_t{3 + number} << 30, 2 + number);
  if (number == 2) {
    DeviceFacts& facts = worker.devices[0].facts;
    worker.devices[0].id = "gpu-0";
    facts.device_class = "gpu-test";
    facts.kind = DeviceKind::kCuda;
    facts.device_bytes = int64_t{2} << 30;
  }
  return worker;
}

}  // namespace

World::World(const Trace& trace)
    : trace_(trace),
      context_(trace.seed),
      backend_(trace.disk ? MakeDiskBackend(trace.seed) : MakeMemoryBackend()),
      scheduler_(&context_, backend_.get()),
      invariants_(&context_, backend_.get(), &scheduler_, &workers_) {
  for (int i = 0; i < 3; ++i) {
    workers_.push_back(std::make_unique<SimWorker>(&context_, &scheduler_, backend_.get(), MakeWorker(i)));
  }
}

Outcome World::Run() {
  scheduler_.Start();
  for (const auto& worker : workers_) worker->StartAgent();
  const int64_t begin = context_.timeline.now();
  const auto after = [this] { return Happens(); };
  for (const Step& step : trace_.steps) {
    if (!context_.violations.empty()) break;
    const int64_t gap = static_cast<int64_t>(step.after_permille) * (context_.lease_nanos() / 1'000);
    context_.timeline.RunUntil(context_.timeline.now() + gap, after);
    if (!context_.violations.empty()) break;
    Do(step);
    Happens();
  }
  if (context_.violations.empty()) Peace();
  Outcome outcome;
  outcome.violations = context_.violations;
  for (const std::string& note : context_.notes) outcome.notes += note + "\n";
  outcome.simulated_seconds = (context_.timeline.now() - begin) / (1'000 * kMillis);
  outcome.turns = scheduler_.turns();
  outcome.power_cuts = backend_->power_cuts();
  outcome.jobs = static_cast<int>(ids_.size());
  outcome.digest = std::to_string(digest_);
  return outcome;
}

bool World::Happens() {
  if (backend_->power_is_off()) scheduler_.Crash();
  invariants_.Check();
  digest_ = CounterBits(digest_, static_cast<uint64_t>(context_.timeline.now() ^ scheduler_.turns()));
  return context_.violations.empty();
}

std::string World::JobOf(uint64_t which) const {
  return ids_.empty() ? std::string("ftjob-none") : ids_[which % ids_.size()];
}

void World::Do(const Step& step) {
  context_.Note(std::string("-- ") + Name(step.op) + " " + std::to_string(step.a) + " " + std::to_string(step.b));
  const auto duration = [&] {
    return static_cast<int64_t>(1 + step.b) * 3 * context_.options.worker_lost_ms * kMillis / 1'000;
  };
  switch (step.op) {
    case Op::kCreate:
      if (by_request_.size() < kMostJobs) UploadDataset(step.a, "request-" + std::to_string(++requests_));
      return;
    case Op::kCancel:
      return Ask("cancel", &DispatcherCore::Cancel, JobOf(step.a));
    case Op::kPause:
      return Ask("pause", &DispatcherCore::Pause, JobOf(step.a));
    case Op::kResume:
      return Ask("resume", &DispatcherCore::Resume, JobOf(step.a));
    case Op::kDelete:
      return Delete(JobOf(step.a));
    case Op::kCrash:
      return scheduler_.Crash();
    case Op::kLieCommit:
      return backend_->LieAboutCommits(1);
    case Op::kStandStill:
      return scheduler_.StandStill(duration());
    case Op::kPowerCut:
      return backend_->CutPowerAfter(step.a % 120);
    case Op::kStoreFails:
      if (step.b % 4 != 0) return backend_->FailCommits(1 + static_cast<int>(step.a % 3));
      // A disk that stays full for a while. The scheduler tries every second, so the longest times would cost most of
      // all runs and show nothing that workers lost within this one do not.
      backend_->FailCommits(1'000'000);
      return context_.timeline.In(std::min(duration(), kMostFullNanos), [this] { backend_->FailCommits(0); });
    case Op::kWritesFail:
      return backend_->FailWrites(1 + static_cast<int>(step.a % 2));
    case Op::kAgentDies:
      return WorkerOf(step.a).AgentDies();
    case Op::kMachineDies:
      return WorkerOf(step.a).MachineDies();
    case Op::kDiskLost:
      return WorkerOf(step.a).DiskLost();
    case Op::kAgentStarts:
      return WorkerOf(step.a).StartAgent();
    case Op::kPartition:
      return WorkerOf(step.a).Partition(duration());
    case Op::kStall:
      return WorkerOf(step.a).Stall(duration());
    case Op::kTrainerDies:
      return WorkerOf(step.a).TrainerDies(step.b);
    case Op::kDrain:
      return scheduler_.Post({[id = WorkerOf(step.a).id(), on = step.b % 2 == 0](DispatcherCore& core) {
                                core.SetDraining(id, on).IgnoreError();
                              },
                              [](const absl::Status&) {}, nullptr});
    case Op::kCollect:
      return Collect();
    case Op::kBlobLost:
      return LoseBlob(step.a);
    case Op::kStaleWrite:
      return StaleWrite(JobOf(step.a));
    case Op::kWallStep:
      return context_.timeline.clock()->StepWall((static_cast<int64_t>(step.a) - 500) * 7'200'000);
    case Op::kWait:
      return;
  }
}

// ---- Clients ----

void World::UploadDataset(uint64_t shape, const std::string& request_id) {
  // A few datasets, shared among jobs.
  const std::string content = "dataset " + std::to_string(shape % 5) + std::string(700, '#');
  by_request_.try_emplace(request_id);
  Send(&context_, [=, this] {
    if (!scheduler_.up()) return;
    const absl::StatusOr<BlobRef> blob = backend_->Upload(content);
    if (!blob.ok()) return context_.Note("upload: " + std::string(blob.status().message()));
    Job job = TestJob(*blob, 1 + static_cast<int>(shape % 3));
    job.train_shape.sequence_length = 100'000 + static_cast<int64_t>(shape * 1'500);
    job.backoff_seconds = static_cast<int64_t>(shape % 4) * 5;
    job.retry_limit = static_cast<int>(shape % 5);
    job.priority = static_cast<PriorityClass>(1 + shape % 3);
    job.device_share = shape % 4 == 0 ? DeviceShare::kFit : DeviceShare::kWhole;
    job.project = shape % 2 == 0 ? "default" : "research";
    job.request_id = request_id;
    if (shape % 7 == 0) {
      job.deadline_wall_micros =
          context_.timeline.clock()->WallMicros() + static_cast<int64_t>(shape) * context_.options.lease_ms * 30;
    }
    scheduler_.Post({[blob](DispatcherCore& core) { core.RecordBlobs({*blob}).IgnoreError(); },
                     [=, this](const absl::Status& commit) {
                       if (commit.ok()) scheduler_.Answer([=, this] { Create({job, "body " + request_id}, 0); });
                     },
                     nullptr});
  });
}

// Sent until an answer comes, as a client does that has to know.
void World::Create(const CreateInput& input, int tries) {
  if (tries > kMostTries) return;
  const std::string request = input.job.request_id;
  Send(&context_, [=, this] {
    auto result = std::make_shared<absl::StatusOr<Job>>(absl::UnknownError("not run"));
    scheduler_.Post({[=](DispatcherCore& core) { *result = core.Create(input); },
                     [=, this](const absl::Status& commit) {
                       const absl::StatusOr<Job> job = commit.ok() ? *result : commit;
                       if (job.ok() && !uncertain_.contains(job->id) && !backend_->store()->GetJob(job->id).ok()) {
                         context_.Violation(job->id + " is acknowledged before it is committed");
                       }
                       scheduler_.Answer([=, this] { Created(input, tries, job); });
                     },
                     nullptr});
  });
  // The answer may be lost; a client may also just be impatient.
  context_.timeline.In(context_.draws.Between(1, 8) * context_.hold_nanos() / 4, [=, this] {
    if (by_request_[request].empty() || context_.draws.Percent(10)) Create(input, tries + 1);
  });
}

void World::Created(const CreateInput& input, int tries, const absl::StatusOr<Job>& job) {
  std::string& known = by_request_[input.job.request_id];
  if (!job.ok()) {
    if (tries == 0) context_.Note("create: " + std::string(job.status().message()));
    return;
  }
  if (known.empty()) {
    known = job->id;
    context_.Note(job->id + " is created");
    ids_.push_back(job->id);
    invariants_.JobCreated(job->id);
  } else if (known != job->id) {
    context_.Violation(input.job.request_id + " made two jobs, " + known + " and " + job->id);
  }
}

void World::Ask(const char* what, Command command, const std::string& id) {
  Send(&context_, [=, this] {
    auto result = std::make_shared<absl::StatusOr<Job>>(absl::UnknownError("not run"));
    scheduler_.Post({[=](DispatcherCore& core) { *result = (core.*command)(id); },
                     [=, this](const absl::Status& commit) {
                       if (!commit.ok() || !result->ok()) return;
                       const absl::StatusOr<Job> stored = backend_->store()->GetJob(id);
                       // The answer may be behind later commands of the same batch, never before its own commit.
                       if (stored.ok() ? stored->sequence < (*result)->sequence : !uncertain_.contains(id)) {
                         context_.Violation(std::string(what) + " of " + id +
                                            " is acknowledged before it is committed");
                       }
                       context_.Note(std::string(what) + " of " + id + ": " + server::Name((*result)->state));
                       if (command == &DispatcherCore::Cancel) invariants_.JobCancelled(id, (*result)->sequence);
                     },
                     nullptr});
  });
}

void World::Delete(const std::string& id) {
  Send(&context_, [=, this] {
    if (!scheduler_.up()) return;
    auto result = std::make_shared<absl::Status>();
    scheduler_.Post({[=, this](DispatcherCore& core) {
                       *result = core.Delete(id);
                       // From here on it may be gone, whatever the answer says.
                       if (result->ok()) {
                         uncertain_.insert(id);
                         context_.deletions.insert(id);
                         invariants_.DeleteAsked(id);
                       }
                     },
                     [=, this](const absl::Status& commit) {
                       if (!commit.ok() || !result->ok()) return;
                       context_.Note(id + " is deleted");
                       if (backend_->store()->GetJob(id).ok()) context_.Violation(id + " is deleted and there");
                     },
                     nullptr});
  });
}

void World::Collect() {
  if (!scheduler_.up()) return;
  // Listed now, by another thread than the one that may delete some of them before it takes the list.
  std::vector<BlobRef> unknown;
  for (int folder = 0; folder < kBlobFolders; ++folder) {
    const absl::StatusOr<std::vector<BlobRef>> found = UnknownBlobs(backend_->blobs(), backend_->store(), folder);
    if (found.ok()) unknown.insert(unknown.end(), found->begin(), found->end());
  }
  scheduler_.Post(
      {[unknown = std::move(unknown)](DispatcherCore& core) { core.CollectBlobs(unknown).status().IgnoreError(); },
       [](const absl::Status&) {}, nullptr});
  const absl::StatusOr<std::vector<std::string>> deleted = backend_->store()->ListDeletedJobs("", 100);
  if (!deleted.ok() || deleted->empty()) return;
  scheduler_.Post({[ids = *deleted](DispatcherCore& core) { core.ForgetDeletedJobs(ids).IgnoreError(); },
                   [](const absl::Status&) {}, nullptr});
}

// An attempt of the past writes, with its worker's newest session.
void World::StaleWrite(const std::string& id) {
  if (!scheduler_.up()) return;
  const absl::StatusOr<Job> job = backend_->store()->GetJob(id);
  if (!job.ok() || job->lease_epoch < 2 || job->attempts < 1) return;
  const AttemptKey key{id, static_cast<int>(context_.draws.Between(1, job->attempts)),
                       context_.draws.Between(1, job->lease_epoch - 1)};
  for (const auto& worker : workers_) {
    if (worker->session().empty()) continue;
    auto results = std::make_shared<std::vector<absl::Status>>();
    scheduler_.Post({[=, this, session = worker->session()](DispatcherCore& core) {
                       const absl::StatusOr<BlobRef> blob = backend_->Upload("stale" + std::string(500, '!'));
                       if (!blob.ok()) return;
                       Checkpoint checkpoint;
                       checkpoint.step = 99;
                       checkpoint.files = {{"adapter.bin", *blob}};
                       results->push_back(core.CommitCheckpoint(session, key, checkpoint));
                       results->push_back(core.CommitArtifact(session, key, {{"adapter", *blob}}, ""));
                       results->push_back(core.CheckFence(session, key));
                     },
                     [=, this](const absl::Status&) {
                       for (const absl::Status& status : *results) {
                         if (status.ok()) {
                           context_.Violation("a write of the past epoch " + std::to_string(key.lease_epoch) + " to " +
                                              id + " was accepted");
                         }
                       }
                     },
                     nullptr});
  }
}

void World::LoseBlob(uint64_t which) {
  if (!scheduler_.up()) return;
  const absl::StatusOr<Job> job = backend_->store()->GetJob(JobOf(which));
  if (!job.ok() || !job->last_checkpoint.has_value()) return;
  const BlobRef blob = job->last_checkpoint->files[0].blob;
  context_.Note("the last checkpoint of " + job->id + " rots");
  invariants_.BlobLost(blob.sha256);
  backend_->LoseBlob(blob);
}

// ---- The end ----

bool World::Done() {
  if (!scheduler_.up()) return false;
  for (const std::string& id : ids_) {
    const absl::StatusOr<Job> job = backend_->store()->GetJob(id);
    if (job.ok() && !IsTerminal(job->state)) return false;
  }
  for (const auto& [id, record] : scheduler_.core()->workers()) {
    if (!record.holds.empty()) return false;
  }
  return std::all_of(workers_.begin(), workers_.end(), [](const auto& worker) { return worker->trainers().empty(); });
}

void World::Peace() {
  context_.Note("-- peace");
  context_.peace = true;
  backend_->FailCommits(0);
  backend_->FailWrites(0);
  backend_->LieAboutCommits(0);
  for (const auto& worker : workers_) worker->Heal();
  const auto after = [this] { return Happens(); };
  const int64_t deadline = context_.timeline.now() + 400 * context_.lease_nanos();
  // Backoff of an hour at most, many attempts at most: everything ends.
  const int64_t least = int64_t{3} * 24 * 3'600'000 * kMillis;
  while (context_.violations.empty() && !Done()) {
    if (context_.timeline.now() > deadline + least) break;
    for (const auto& worker : workers_) {
      scheduler_.Post({[id = worker->id()](DispatcherCore& core) { core.SetDraining(id, false).IgnoreError(); },
                       [](const absl::Status&) {}, nullptr});
    }
    for (const std::string& id : ids_) {
      if (!scheduler_.up()) break;
      const absl::StatusOr<Job> job = backend_->store()->GetJob(id);
      if (job.ok() && job->state == JobState::kPaused) Ask("resume", &DispatcherCore::Resume, id);
    }
    context_.timeline.RunUntil(context_.timeline.now() + context_.lease_nanos() / 2, after);
  }
  if (context_.violations.empty()) ExpectNothingLeft();
  if (context_.violations.empty()) invariants_.CheckAll();
}

void World::ExpectNothingLeft() {
  if (!scheduler_.up()) return context_.Violation("the scheduler is still down");
  for (const std::string& id : ids_) {
    const absl::StatusOr<Job> job = backend_->store()->GetJob(id);
    if (job.ok() && !IsTerminal(job->state)) {
      context_.Violation(id + " has not come to its end: " + server::Name(job->state) + ", " + job->reason_detail);
    }
  }
  for (const auto& [id, record] : scheduler_.core()->workers()) {
    for (const auto& [key, hold] : record.holds) context_.Violation(id + " still holds " + key.first);
  }
  for (const auto& worker : workers_) {
    for (const auto& [key, trainer] : worker->trainers()) {
      context_.Violation(worker->id() + " still has attempt " + std::to_string(key.second) + " of " + key.first);
    }
  }
  if (trace_.disk) return;  // a refused removal of a file counts as one, rightly
  const DispatcherStats stats = scheduler_.core()->Stats();
  if (stats.internal_errors_total > 0) context_.Violation("internal error: " + stats.last_internal_error);
}

Outcome Simulate(const Trace& trace) { return World(trace).Run(); }

}  // namespace longhaul::simulation
