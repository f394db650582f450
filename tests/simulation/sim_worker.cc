#include "tests/simulation/sim_worker.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "base/error.h"
#include "base/limits.h"

namespace longhaul::simulation {

using namespace server;  // NOLINT: the scheduler's protocol is this file's subject

SimWorker::SimWorker(Context* context, SimScheduler* scheduler, Backend* backend, Worker worker)
    : context_(context), scheduler_(scheduler), backend_(backend), worker_(std::move(worker)) {}

// ---- The network ----

void SimWorker::ToScheduler(std::function<void()> deliver) {
  if (Cut()) return;
  Send(context_, [this, deliver = std::move(deliver)] {
    if (!Cut()) deliver();
  });
}

void SimWorker::FromScheduler(std::function<void()> arrive) {
  // What stands still reads it when it moves again.
  if (Stalled()) {
    context_->timeline.At(stalled_until_nanos_, [this, arrive = std::move(arrive)] { FromScheduler(arrive); });
    return;
  }
  if (!Cut()) arrive();
}

void SimWorker::AnswerWith(std::function<void()> arrive) {
  scheduler_->Answer([this, agent = agent_, arrive = std::move(arrive)] {
    FromScheduler([this, agent, arrive] {
      if (agent_up_ && agent == agent_) arrive();
    });
  });
}

// ---- The agent ----

void SimWorker::StartAgent() {
  if (agent_up_) return;
  agent_up_ = true;
  ++agent_;
  context_->Note(id() + ": its agent starts with " + std::to_string(trainers_.size()) + " attempts");
  Poll();
}

void SimWorker::AgentDies() {
  if (!agent_up_) return;
  context_->Note(id() + ": its agent dies");
  agent_up_ = false;
  ++agent_;
  session_.clear();
  opening_ = 0;
  last_opening_.clear();
  in_flight_.clear();
  to_repeat_.clear();
  put_away_.clear();
  for (auto& [key, trainer] : trainers_) trainer.in_flight = false;
}

void SimWorker::MachineDies() {
  context_->Note(id() + ": the machine dies");
  AgentDies();
  for (auto& [key, trainer] : trainers_) {
    if (!trainer.ended) End(&trainer, ExitReason::kCrashed);
  }
}

void SimWorker::DiskLost() {
  MachineDies();
  context_->Note(id() + ": and its disk is empty");
  trainers_.clear();
}

void SimWorker::Heal() {
  cut_until_nanos_ = 0;
  stalled_until_nanos_ = 0;
  StartAgent();
}

void SimWorker::TrainerDies(uint64_t which) {
  if (trainers_.empty()) return;
  auto at = trainers_.begin();
  std::advance(at, static_cast<int64_t>(which % trainers_.size()));
  if (at->second.ended) return;
  constexpr Reason kWhy[] = {Reason::kInternal, Reason::kNonFiniteLoss, Reason::kDiskFull, Reason::kHostOom};
  context_->Note(id() + ": the trainer of " + at->first.first + " dies");
  if (which % 3 == 0) {
    End(&at->second, ExitReason::kCrashed);
  } else {
    End(&at->second, ExitReason::kFailed, kWhy[which / 3 % 4]);
  }
}

void SimWorker::News() {
  news_ = true;
  Poll();
}

void SimWorker::Poll() {
  if (!agent_up_) return;
  if (Stalled()) {
    context_->timeline.At(stalled_until_nanos_, [this, agent = agent_] {
      if (agent == agent_) Poll();
    });
    return;
  }
  if (session_.empty()) {
    if (opening_ == 0) Open();
    return;
  }
  if (in_flight_.size() >= (news_ ? 2u : 1u)) return;
  if (to_repeat_.empty()) {
    SendSync(next_number_++);
  } else {
    SendSync(*to_repeat_.begin());
  }
}

void SimWorker::Open() {
  opening_ = ++openings_;
  SessionInput input{worker_, 1, Reports()};
  input.last_opening = last_opening_;
  ToScheduler([this, input, opening = opening_, process = scheduler_->process()] {
    // Given up since, or its agent dead: it comes nevertheless, as late as it likes. Only the process that it was sent
    // to can take it: a call is of a connection.
    if (process != scheduler_->process()) return;
    auto result = std::make_shared<absl::StatusOr<SessionReply>>(absl::UnknownError("not run"));
    scheduler_->Post({[=](DispatcherCore& core) { *result = core.OpenSession(input); },
                      [=, this](const absl::Status& commit) {
                        if (commit.ok() && result->ok()) last_heard_nanos_ = context_->timeline.now();
                        AnswerWith([=, this] {
                          if (opening == opening_) Opened(commit.ok() ? *result : commit);
                        });
                      },
                      nullptr});
  });
  context_->timeline.In(2 * context_->hold_nanos(), [this, agent = agent_, opening = opening_] {
    if (agent != agent_ || opening != opening_) return;
    opening_ = 0;
    Poll();
  });
}

void SimWorker::Opened(const absl::StatusOr<SessionReply>& reply) {
  opening_ = 0;
  if (ErrorReason(reply.status()) == "OPENED_SINCE") {
    last_opening_ = ErrorMetadata(reply.status(), "opening");
    return Poll();
  }
  if (!reply.ok()) {
    context_->timeline.In(context_->hold_nanos() / 5, [this, agent = agent_] {
      if (agent == agent_) Poll();
    });
    return;
  }
  last_opening_ = reply->opening;
  context_->Note(id() + " has session " + reply->session_id);
  session_ = reply->session_id;
  next_number_ = 1;
  in_flight_.clear();
  to_repeat_.clear();
  for (const AttemptKey& key : reply->fenced) {
    if (Find(key) != nullptr) PutAway(key);
  }
  Poll();
}

void SimWorker::SendSync(int64_t number) {
  news_ = false;
  to_repeat_.erase(number);
  const int64_t sent = context_->timeline.now();
  in_flight_[number] = sent;
  ToScheduler([this, sent, input = SyncInput{session_, number, Reports(), 0, 0}, agent = agent_] {
    if (!scheduler_->up()) return;
    const std::string session = input.session_id;
    const int64_t sync_number = input.sync_number;
    Mail mail = scheduler_->loop()->SyncMail(input, [this, sync_number, sent, session](const auto& reply) {
      AnswerWith([=, this] {
        if (session == session_) Synced(sync_number, sent, reply);
      });
    });
    // Heard of, if its session is open; whether the store can keep what it says changes nothing about that.
    mail.apply = [this, session, apply = std::move(mail.apply)](DispatcherCore& core) {
      if (core.SessionOpen(session)) last_heard_nanos_ = context_->timeline.now();
      apply(core);
    };
    scheduler_->Post(std::move(mail));
  });
  context_->timeline.In(3 * context_->hold_nanos() / 2, [this, number, sent, agent = agent_, session = session_] {
    if (agent != agent_ || session != session_) return;
    const auto found = in_flight_.find(number);
    if (found == in_flight_.end() || found->second != sent) return;
    in_flight_.erase(found);
    to_repeat_.insert(number);
    Poll();
  });
}

void SimWorker::Synced(int64_t number, int64_t sent_nanos, const absl::StatusOr<SyncReply>& reply) {
  const auto found = in_flight_.find(number);
  const bool waited_for = found != in_flight_.end() && found->second == sent_nanos;
  if (waited_for) in_flight_.erase(found);
  if (!reply.ok()) {
    if (ErrorReason(reply.status()) == "SESSION_CLOSED") {
      session_.clear();
      in_flight_.clear();
      to_repeat_.clear();
    } else if (waited_for) {
      to_repeat_.insert(number);
    }
    context_->timeline.In(context_->hold_nanos() / 5, [this, agent = agent_] {
      if (agent == agent_) Poll();
    });
    return;
  }
  // An answer that was given up has no leases to give, and its commands come again.
  if (waited_for) Obey(*reply, sent_nanos + reply->lease_ms * kMillis);
  Poll();
}

void SimWorker::Obey(const SyncReply& reply, int64_t lease_until_nanos) {
  for (const AttemptKey& key : reply.acknowledged) {
    Trainer* trainer = Find(key);
    if (trainer != nullptr && trainer->ended) PutAway(key);
  }
  for (const StartCommand& start : reply.starts) {
    const std::pair<std::string, int> key(start.key.job_id, start.key.attempt);
    if (!trainers_.contains(key) && !put_away_.contains(key)) Launch(start, lease_until_nanos);
  }
  for (const AttemptKey& key : reply.leases) {
    Trainer* trainer = Find(key);
    if (trainer != nullptr) trainer->lease_until_nanos = std::max(trainer->lease_until_nanos, lease_until_nanos);
  }
  for (const StopCommand& stop : reply.stops) {
    Trainer* trainer = Find(stop.key);
    if (trainer == nullptr) continue;
    if (stop.mode == StopMode::kFenced) {
      PutAway(stop.key);
      news_ = true;
    } else if (!trainer->ended && stop.mode == StopMode::kCancel) {
      End(trainer, ExitReason::kCancelled);
    } else if (!trainer->ended) {
      trainer->checkpoint_asked = true;
    }
  }
}

std::vector<AttemptReport> SimWorker::Reports() {
  std::vector<AttemptReport> reports;
  for (auto& [key, trainer] : trainers_) reports.push_back(ReportOf(&trainer));
  return reports;
}

AttemptReport SimWorker::ReportOf(Trainer* trainer) {
  AttemptReport report;
  report.key = trainer->start.key;
  report.host_bytes_peak = 1 << 20;
  if (trainer->ended) {
    report.phase = AttemptPhase::kEnded;
    report.exit = trainer->exit;
    report.exit_failure.reason = trainer->failure;
    if (trainer->failure != Reason::kNone) report.exit_failure.message = "it failed";
    if (trainer->start.kind == AttemptKind::kValidate && trainer->exit == ExitReason::kSucceeded) {
      report.data_report = "report";
      report.report_examples = 10;
      report.report_longest_tokens = 1 << 30;
      report.report_total_steps = 60;
      report.report_tokens = 3000;
    }
    return report;
  }
  const bool held = context_->timeline.now() >= trainer->lease_until_nanos;
  report.phase = trainer->finalizing  ? AttemptPhase::kFinalizing
                 : held               ? AttemptPhase::kHeld
                 : trainer->step == 0 ? AttemptPhase::kStarting
                                      : AttemptPhase::kRunning;
  if (trainer->finalizing) report.exit = ExitReason::kSucceeded;
  // Progress may be told twice: the last few steps again each time.
  for (int64_t step = std::max<int64_t>(1, trainer->told_step - 2); step <= trainer->step; ++step) {
    report.progress.push_back({trainer->start.key.attempt, step, "step " + std::to_string(step), step * 100, 0.5});
  }
  trainer->told_step = trainer->step;
  return report;
}

Trainer* SimWorker::Find(const AttemptKey& key) {
  const auto found = trainers_.find({key.job_id, key.attempt});
  if (found == trainers_.end() || found->second.start.key.lease_epoch != key.lease_epoch) return nullptr;
  return &found->second;
}

void SimWorker::PutAway(const AttemptKey& key) {
  trainers_.erase({key.job_id, key.attempt});
  put_away_.emplace(key.job_id, key.attempt);
}

// ---- Trainers ----

void SimWorker::Launch(const StartCommand& start, int64_t lease_until_nanos) {
  Trainer trainer;
  trainer.start = start;
  trainer.incarnation = ++trainer_incarnations_;
  trainer.lease_until_nanos = lease_until_nanos;
  if (start.resume_from.has_value()) trainer.step = start.resume_from->step;
  trainer.told_step = trainer.step;
  context_->Note(id() + " runs attempt " + std::to_string(start.key.attempt) + " of " + start.key.job_id + ", epoch " +
                 std::to_string(start.key.lease_epoch) + ", from step " + std::to_string(trainer.step));
  trainers_[{start.key.job_id, start.key.attempt}] = trainer;
  Watch(start.key, trainer.incarnation);
}

void SimWorker::Watch(const AttemptKey& key, uint64_t incarnation) {
  const int64_t pace = context_->hold_nanos() / kMillis;
  context_->timeline.In(context_->draws.Between(pace / 5, pace * 3 / 2) * kMillis, [this, key, incarnation] {
    Trainer* trainer = Find(key);
    if (trainer == nullptr || trainer->incarnation != incarnation || trainer->ended) return;
    if (!Stalled()) Act(key, trainer);
    Watch(key, incarnation);
  });
}

void SimWorker::Act(const AttemptKey& key, Trainer* trainer) {
  const int64_t now = context_->timeline.now();
  if (now >= trainer->lease_until_nanos) {
    if (trainer->held_since_nanos == 0) trainer->held_since_nanos = now;
    if (now - trainer->held_since_nanos >= limits::kOrphanMs * kMillis) End(trainer, ExitReason::kLeaseLost);
    return;
  }
  trainer->held_since_nanos = 0;
  if (trainer->start.kind == AttemptKind::kValidate) return End(trainer, ExitReason::kSucceeded);
  if (trainer->finalizing || trainer->committing_step > 0) return Commit(key, trainer);
  trainer->step += context_->draws.Between(1, context_->peace ? 30 : 10);
  if (trainer->checkpoint_asked || context_->draws.Percent(30)) {
    trainer->committing_step = trainer->step;
    Commit(key, trainer);
  } else if (trainer->step > 40) {
    trainer->finalizing = true;
    News();
  }
}

void SimWorker::End(Trainer* trainer, ExitReason exit, Reason failure) {
  trainer->ended = true;
  trainer->exit = exit;
  trainer->failure = failure;
  News();
}

// Bytes first, then the fenced reference, each until it is answered. The trainer may lose its lease meanwhile.
void SimWorker::Commit(const AttemptKey& key, Trainer* trainer) {
  if (trainer->in_flight || !agent_up_ || session_.empty()) return;
  trainer->in_flight = true;
  const bool artifact = trainer->finalizing;
  const int64_t step = artifact ? 0 : trainer->committing_step;
  const uint64_t incarnation = trainer->incarnation;
  const std::string content = key.job_id + (artifact ? " adapter" : " step " + std::to_string(step)) + " epoch " +
                              std::to_string(key.lease_epoch) + std::string(600, '.');
  const auto give_up = [this, key, incarnation, step] {
    Trainer* found = Find(key);
    if (found == nullptr || found->incarnation != incarnation || found->ended) return;
    if (found->in_flight && (found->finalizing ? 0 : found->committing_step) == step) found->in_flight = false;
  };
  context_->timeline.In(context_->hold_nanos() + kMillis, give_up);
  ToScheduler([=, this, session = session_] {
    if (!scheduler_->up()) return;
    const absl::StatusOr<BlobRef> blob = backend_->Upload(content);
    if (!blob.ok()) return;
    scheduler_->Post({[blob](DispatcherCore& core) { core.RecordBlobs({*blob}).IgnoreError(); },
                      [](const absl::Status&) {}, nullptr});
    auto result = std::make_shared<absl::Status>();
    scheduler_->Post({[=, this](DispatcherCore& core) {
                        if (artifact) {
                          *result = core.CommitArtifact(session, key, {{"adapter", *blob}}, "result");
                        } else {
                          Checkpoint checkpoint;
                          checkpoint.step = step;
                          checkpoint.plan_signature = "plan";
                          checkpoint.eval_loss = 1.0 / static_cast<double>(1 + step % 7);
                          checkpoint.files = {{"adapter.bin", *blob}};
                          *result = core.CommitCheckpoint(session, key, checkpoint);
                        }
                        if (result->ok()) CheckFenced(core, key);
                      },
                      [=, this](const absl::Status& commit) {
                        const absl::Status status = commit.ok() ? *result : commit;
                        if (status.ok()) CheckAccepted(key, step);
                        AnswerWith([=, this] { Committed(key, incarnation, step, status); });
                      },
                      nullptr});
  });
}

// What is accepted is of the newest epoch of its job. Later commands of the same batch may begin another.
void SimWorker::CheckFenced(const DispatcherCore& core, const AttemptKey& key) {
  const auto found = core.jobs().find(key.job_id);
  int64_t epoch = 0;
  if (found != core.jobs().end()) {
    epoch = found->second.job.lease_epoch;
  } else {  // terminal, and so in the store alone
    const absl::StatusOr<Job> job = backend_->store()->GetJob(key.job_id);
    if (!job.ok()) return;  // CheckAccepted says so
    epoch = job->lease_epoch;
  }
  if (epoch == key.lease_epoch) return;
  context_->Violation("a write of epoch " + std::to_string(key.lease_epoch) + " to " + key.job_id + ", at epoch " +
                      std::to_string(epoch) + ", was accepted");
}

// What is acknowledged is durable.
void SimWorker::CheckAccepted(const AttemptKey& key, int64_t step) {
  const absl::StatusOr<Job> job = backend_->store()->GetJob(key.job_id);
  if (absl::IsNotFound(job.status()) && context_->deletions.contains(key.job_id)) return;
  if (!job.ok()) return context_->Violation("a write to " + key.job_id + ", which is not there, was accepted");
  if (step == 0) {
    if (job->state != JobState::kSucceeded) context_->Violation("the artifact of " + key.job_id + " is not committed");
    return;
  }
  if (!job->last_checkpoint.has_value() || job->last_checkpoint->step < step) {
    context_->Violation("checkpoint " + std::to_string(step) + " of " + key.job_id + " is acknowledged, not committed");
  }
}

void SimWorker::Committed(const AttemptKey& key, uint64_t incarnation, int64_t step, const absl::Status& status) {
  Trainer* trainer = Find(key);
  if (trainer == nullptr || trainer->incarnation != incarnation || trainer->ended) return;
  if ((trainer->finalizing ? 0 : trainer->committing_step) != step) return;  // an older answer
  trainer->in_flight = false;
  if (ErrorReason(status) == "LEASE_FENCED") {
    context_->Note(id() + ": " + key.job_id + " is fenced");
    PutAway(key);
    return News();
  }
  if (!status.ok()) return;  // tried again when the trainer acts next
  if (step == 0) return End(trainer, ExitReason::kSucceeded);
  trainer->committing_step = 0;
  if (trainer->checkpoint_asked) End(trainer, ExitReason::kCheckpointed);
}

}  // namespace longhaul::simulation
