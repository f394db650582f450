// server::Store in memory: the same contract as the SQLite store (tests/storage/store_contract.h runs on both), with
// failures on demand. A transaction works on a copy, which shares what it does not change; Commit swaps it in.
// Reads from any thread; writes from one.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "server/core/store.h"

namespace longhaul::server {

class FakeStore final : public Store, public StoreWriter {
 public:
  // Of one job. Shared between states until a transaction writes to it.
  struct Rows {
    uint64_t owner = 0;  // the command that may write to it in place
    Job job;
    std::map<int, Attempt> attempts;
    std::vector<std::shared_ptr<const JobEvent>> events;
    std::map<int64_t, Checkpoint> checkpoints;
    std::map<int64_t, MetricPoint> metrics;
  };
  struct State {
    std::map<std::string, std::shared_ptr<Rows>> jobs;
    std::map<std::pair<std::string, std::string>, RequestKey> keys;
    std::map<std::string, std::shared_ptr<const Worker>> workers;
    std::map<std::string, std::pair<BlobRef, int64_t>> blobs;     // grace
    std::set<std::pair<std::string, std::string>> blob_projects;  // project, sha256
    std::vector<AuditRecord> audit;
    int64_t audit_numbers = 0;  // given out
    std::set<std::string> deleted;
  };

  FakeStore() : state_(std::make_shared<const State>()) {}

  // The next `count` commits fail, as on a full disk; nothing of them is kept.
  void FailCommits(int count) { fail_commits_ = count; }
  // The next `count` writes inside transactions fail.
  void FailWrites(int count) { fail_writes_ = count; }
  // One write fails, behind `count` that do not.
  void FailWritesAfter(int count) {
    writes_before_failure_ = count;
    fail_writes_ = 1;
  }
  // The next `count` commits are kept and answered with an error, as when the process dies before it hears of them.
  void LieAboutCommits(int count) {
    lie_commits_ = count;
    lied_ = false;
  }
  bool lied() const { return lied_; }
  int commits() const { return commits_; }

  StoreWriter& Writer() override { return *this; }
  absl::StatusOr<std::unique_ptr<StoreTransaction>> Begin() override;
  absl::StatusOr<Job> GetJob(const std::string& id) override;
  absl::StatusOr<JobPage> ListJobs(const JobFilter& filter) override;
  absl::StatusOr<std::optional<RequestKey>> GetRequestKey(const std::string& project,
                                                          const std::string& request_id) override;
  absl::StatusOr<std::vector<JobEvent>> ListEvents(const std::string& job_id, int64_t after_sequence,
                                                   int most) override;
  absl::StatusOr<std::vector<Attempt>> ListAttempts(const std::string& job_id) override;
  absl::StatusOr<std::vector<Checkpoint>> ListCheckpoints(const std::string& job_id) override;
  absl::StatusOr<std::vector<MetricPoint>> ListMetrics(const std::string& job_id, int64_t after_step,
                                                       int most) override;
  absl::StatusOr<std::vector<Worker>> ListWorkers() override;
  absl::StatusOr<bool> HasBlob(const BlobRef& blob) override;
  absl::StatusOr<std::optional<int64_t>> IdleBlobGraceMicros(const BlobRef& blob) override;
  absl::StatusOr<bool> BlobInProject(const BlobRef& blob, const std::string& project) override;
  absl::StatusOr<Uploads> Uploaded(const std::string& project) override;
  absl::StatusOr<std::vector<AuditRecord>> ListAudit(int64_t after_number, int most) override;
  absl::StatusOr<std::vector<Job>> LoadLiveJobs() override;
  absl::StatusOr<uint64_t> MaxCreateNumber() override;
  absl::StatusOr<std::vector<std::string>> ListDeletedJobs(const std::string& after, int most) override;
  Sizes GetSizes() override { return {}; }

 private:
  friend class FakeTransaction;
  std::shared_ptr<const State> state() const {
    std::lock_guard lock(mutex_);
    return state_;
  }

  mutable std::mutex mutex_;  // guards state_
  std::shared_ptr<const State> state_;
  std::atomic<int> fail_commits_ = 0;
  std::atomic<int> fail_writes_ = 0;
  std::atomic<int> writes_before_failure_ = 0;
  std::atomic<int> lie_commits_ = 0;
  std::atomic<bool> lied_ = false;
  std::atomic<int> commits_ = 0;
  uint64_t owners_ = 0;
};

}  // namespace longhaul::server
