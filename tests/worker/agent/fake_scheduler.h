// The scheduler as the agent sees it, in memory: blobs, sessions, parked Syncs, commits. Thread-safe.
#pragma once

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "base/env.h"
#include "base/error.h"
#include "base/hash.h"
#include "base/limits.h"
#include "worker/agent/scheduler_client.h"

namespace longhaul::agent {

class FakeScheduler final : public SchedulerClient {
 public:
  using SyncDone = std::function<void(absl::StatusOr<v1::SyncResponse>)>;

  // ---- What tests set and see ----

  // To start the attempt, whose trainer does what the script says (fake_trainer.cc).
  v1::WorkerCommand StartCommand(const v1::AttemptKey& key, const std::string& script) {
    v1::WorkerCommand command;
    *command.mutable_start()->mutable_key() = key;
    v1::AttemptSpec* spec = command.mutable_start()->mutable_spec();
    spec->set_kind(v1::ATTEMPT_KIND_TRAIN);
    spec->set_model_digest("digest");
    const v1::BlobName blob = AddBlob(script);
    spec->mutable_spec()->mutable_dataset()->set_sha256(blob.sha256());
    spec->mutable_spec()->mutable_dataset()->set_size_bytes(blob.size_bytes());
    return command;
  }
  v1::BlobName AddBlob(const std::string& bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    v1::BlobName blob;
    blob.set_sha256(Sha256Hex(bytes));
    blob.set_size_bytes(static_cast<int64_t>(bytes.size()));
    blobs_[blob.sha256()] = bytes;
    return blob;
  }
  // Goes out with the next answer; a parked Sync is answered at once.
  void Command(const v1::WorkerCommand& command) {
    std::unique_lock<std::mutex> lock(mutex_);
    commands_.push_back(command);
    AnswerParked(lock);
  }
  void Stop(const v1::AttemptKey& key, v1::StopMode mode) {
    v1::WorkerCommand command;
    *command.mutable_stop()->mutable_key() = key;
    command.mutable_stop()->set_mode(mode);
    Command(command);
  }
  void set_down(bool down) {
    std::unique_lock<std::mutex> lock(mutex_);
    down_ = down;
    if (!down) return;
    const std::vector<Parked> parked = std::exchange(parked_, {});
    lock.unlock();
    for (const Parked& p : parked) p.done(absl::UnavailableError("down"));
  }
  // The next transfers and commits lose their connection, which gRPC tells as `how`.
  void ResetNext(int calls, const absl::Status& how) {
    const std::lock_guard<std::mutex> lock(mutex_);
    resets_ = calls;
    reset_ = how;
  }
  // While it is, every read of a blob waits.
  void set_stalled(bool stalled) {
    const std::lock_guard<std::mutex> lock(mutex_);
    stalled_ = stalled;
    stall_ended_.notify_all();
  }
  // Forgets the session, as a restart does.
  void CloseSessions() {
    std::unique_lock<std::mutex> lock(mutex_);
    session_.clear();
    const std::vector<Parked> parked = std::exchange(parked_, {});
    lock.unlock();
    for (const Parked& p : parked) p.done(Closed());
  }
  void Fence(const v1::AttemptKey& key) {
    const std::lock_guard<std::mutex> lock(mutex_);
    fenced_.insert(Name(key));
  }
  // Loses the end of a job's log, as a crash does.
  void CutLog(const std::string& job, size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    seen_.logs[job].resize(bytes);
  }
  void set_acknowledge(bool acknowledge) {
    const std::lock_guard<std::mutex> lock(mutex_);
    acknowledge_ = acknowledge;
  }
  void set_hold(bool hold) {  // false: every Sync is answered at once, also the one that is parked
    std::unique_lock<std::mutex> lock(mutex_);
    hold_ = hold;
    if (!hold) AnswerParked(lock);
  }

  struct Seen {
    std::map<std::string, v1::AttemptStatus> last;      // by job id
    std::map<std::string, std::vector<int64_t>> steps;  // progress, every time it came
    std::map<std::string, std::vector<std::string>> warnings;
    std::vector<v1::CommitCheckpointRequest> checkpoints;
    std::vector<v1::CommitArtifactRequest> artifacts;
    std::vector<std::set<int64_t>> steps_before_artifact;  // of its job, that had come when it was committed
    std::map<std::string, std::string> logs;               // by job id
    std::set<std::string> complete_logs;
    std::vector<int64_t> sync_numbers;
    bool leaving = false;  // as the last Sync said
    std::vector<v1::OpenSessionRequest> opens;
    int most_in_flight = 0;
  };
  Seen seen() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return seen_;
  }
  std::string Blob(const std::string& sha256) const {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = blobs_.find(sha256);
    return found == blobs_.end() ? "" : found->second;
  }
  int reads_waiting() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return reads_waiting_;
  }
  int writes() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return writes_;
  }

  // ---- SchedulerClient ----

  void OpenSession(const v1::OpenSessionRequest& request,
                   std::function<void(absl::StatusOr<v1::OpenSessionResponse>)> done) override {
    std::unique_lock<std::mutex> lock(mutex_);
    if (down_) {
      lock.unlock();
      return done(absl::UnavailableError("down"));
    }
    seen_.opens.push_back(request);
    session_ = "session-" + std::to_string(++sessions_);
    v1::OpenSessionResponse response;
    response.set_session_id(session_);
    response.set_hold_ms(10'000);
    response.set_lease_ms(60'000);
    for (const v1::AttemptStatus& status : request.attempts()) {
      if (fenced_.count(Name(status.key())) > 0) *response.add_fenced() = status.key();
    }
    lock.unlock();
    done(response);
  }

  void Sync(const v1::SyncRequest& request, int64_t, SyncDone done) override {
    std::unique_lock<std::mutex> lock(mutex_);
    if (static_cast<int64_t>(request.ByteSizeLong()) > limits::kMaxGrpcMessageBytes) {
      lock.unlock();
      return done(absl::ResourceExhaustedError("larger than max"));  // as gRPC says it
    }
    if (down_ || request.session_id() != session_) {
      const absl::Status why = down_ ? absl::UnavailableError("down") : Closed();
      lock.unlock();
      return done(why);
    }
    seen_.leaving = request.leaving();
    seen_.sync_numbers.push_back(request.sync_number());
    Record(request);
    // A newer Sync answers the older one.
    std::vector<std::pair<SyncDone, v1::SyncResponse>> answers;
    for (const Parked& parked : std::exchange(parked_, {})) answers.emplace_back(parked.done, Answer(parked.request));
    parked_.push_back({request, std::move(done)});
    seen_.most_in_flight = std::max(seen_.most_in_flight, static_cast<int>(parked_.size() + answers.size()));
    const bool ended = std::any_of(request.attempts().begin(), request.attempts().end(),
                                   [](const auto& a) { return a.phase() == v1::ATTEMPT_PHASE_ENDED; });
    if (!commands_.empty() || !hold_ || (ended && acknowledge_)) {
      for (const Parked& parked : std::exchange(parked_, {})) answers.emplace_back(parked.done, Answer(parked.request));
    }
    lock.unlock();
    for (auto& [answer, response] : answers) answer(response);
  }

  absl::Status CommitCheckpoint(const v1::CommitCheckpointRequest& request) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (const absl::Status status = CheckFence(request.session_id(), request.key()); !status.ok()) return status;
    for (const auto& file : request.checkpoint().files()) {
      if (blobs_.count(file.sha256()) == 0) return absl::FailedPreconditionError("no blob " + file.path());
    }
    seen_.checkpoints.push_back(request);
    return absl::OkStatus();
  }

  absl::Status CommitArtifact(const v1::CommitArtifactRequest& request) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (const absl::Status status = CheckFence(request.session_id(), request.key()); !status.ok()) return status;
    seen_.artifacts.push_back(request);
    const std::vector<int64_t>& steps = seen_.steps[request.key().job_id()];  // told again where unanswered
    seen_.steps_before_artifact.emplace_back(steps.begin(), steps.end());
    return absl::OkStatus();
  }

  absl::StatusOr<int64_t> AppendLog(const v1::AppendLogRequest& request) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (const absl::Status status = CheckFence(request.session_id(), request.key()); !status.ok()) return status;
    std::string& log = seen_.logs[request.key().job_id()];
    if (static_cast<size_t>(request.offset()) > log.size())
      return MakeError(absl::StatusCode::kOutOfRange, "LOG_GAP", "continue from " + std::to_string(log.size()));
    const size_t skip = log.size() - std::min<size_t>(log.size(), static_cast<size_t>(request.offset()));
    if (skip < request.data().size()) log += request.data().substr(skip);
    if (request.complete()) seen_.complete_logs.insert(request.key().job_id());
    return static_cast<int64_t>(log.size());
  }

  absl::StatusOr<std::vector<v1::BlobName>> FindMissing(const std::vector<v1::BlobName>& blobs) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (const absl::Status lost = Connection(); !lost.ok()) return lost;
    std::vector<v1::BlobName> missing;
    for (const v1::BlobName& blob : blobs) {
      if (blobs_.count(blob.sha256()) == 0) missing.push_back(blob);
    }
    return missing;
  }

  absl::Status WriteBlob(const v1::BlobName& blob, const std::string& path, const CancelFlag&) override {
    const auto bytes = ReadFile(path, 1 << 20);
    if (!bytes.ok()) return bytes.status();
    const std::lock_guard<std::mutex> lock(mutex_);
    if (const absl::Status lost = Connection(); !lost.ok()) return lost;
    if (Sha256Hex(*bytes) != blob.sha256()) return absl::DataLossError("not what its name says");
    ++writes_;
    blobs_[blob.sha256()] = *bytes;
    return absl::OkStatus();
  }

  absl::Status ReadBlob(const v1::BlobName& blob, int64_t offset,
                        const std::function<absl::Status(std::string_view)>& sink, const CancelFlag&) override {
    std::unique_lock<std::mutex> lock(mutex_);
    ++reads_waiting_;
    stall_ended_.wait(lock, [this] { return !stalled_; });
    --reads_waiting_;
    if (const absl::Status lost = Connection(); !lost.ok()) return lost;
    const auto found = blobs_.find(blob.sha256());
    if (found == blobs_.end()) return absl::NotFoundError("no blob " + blob.sha256());
    const std::string bytes = found->second.substr(std::min<size_t>(found->second.size(), static_cast<size_t>(offset)));
    lock.unlock();
    // Two chunks, so that order and offsets matter.
    const size_t half = bytes.size() / 2;
    if (const absl::Status status = sink(std::string_view(bytes).substr(0, half)); !status.ok()) return status;
    return sink(std::string_view(bytes).substr(half));
  }

 private:
  struct Parked {
    v1::SyncRequest request;
    SyncDone done;
  };

  static absl::Status Closed() {
    return MakeError(absl::StatusCode::kFailedPrecondition, "SESSION_CLOSED", "the session is closed");
  }
  static std::string Name(const v1::AttemptKey& key) {
    return key.job_id() + "." + std::to_string(key.attempt()) + "." + std::to_string(key.lease_epoch());
  }

  absl::Status Connection() {
    if (down_) return absl::UnavailableError("down");
    if (resets_ == 0) return absl::OkStatus();
    --resets_;
    return reset_;
  }

  absl::Status CheckFence(const std::string& session, const v1::AttemptKey& key) {
    if (const absl::Status lost = Connection(); !lost.ok()) return lost;
    if (session != session_) return Closed();
    if (fenced_.count(Name(key)) > 0)
      return MakeError(absl::StatusCode::kAborted, "LEASE_FENCED", "a newer epoch has it");
    return absl::OkStatus();
  }

  void Record(const v1::SyncRequest& request) {
    for (const v1::AttemptStatus& status : request.attempts()) {
      const std::string& job = status.key().job_id();
      for (const auto& point : status.progress()) seen_.steps[job].push_back(point.step());
      for (const auto& warning : status.warnings()) seen_.warnings[job].push_back(warning);
      seen_.last[job] = status;
    }
  }

  v1::SyncResponse Answer(const v1::SyncRequest& request) {
    v1::SyncResponse response;
    response.set_lease_ms(60'000);
    for (const auto& command : std::exchange(commands_, {})) *response.add_commands() = command;
    for (const v1::AttemptStatus& status : request.attempts()) {
      if (status.phase() != v1::ATTEMPT_PHASE_ENDED) {
        *response.add_leases() = status.key();
      } else if (acknowledge_) {
        *response.add_acknowledged() = status.key();
      }
    }
    return response;
  }

  void AnswerParked(std::unique_lock<std::mutex>& lock) {
    if (parked_.empty()) return;
    Parked parked = parked_.front();
    parked_.erase(parked_.begin());
    const v1::SyncResponse response = Answer(parked.request);
    lock.unlock();
    parked.done(response);
  }

  mutable std::mutex mutex_;
  // All guarded by mutex_.
  std::map<std::string, std::string> blobs_;
  std::vector<v1::WorkerCommand> commands_;
  std::vector<Parked> parked_;
  std::set<std::string> fenced_;
  std::string session_;
  int sessions_ = 0;
  int writes_ = 0;
  bool down_ = false;
  int resets_ = 0;
  absl::Status reset_;
  bool stalled_ = false;
  int reads_waiting_ = 0;
  std::condition_variable stall_ended_;
  bool acknowledge_ = true;
  bool hold_ = true;
  Seen seen_;
};

}  // namespace longhaul::agent
