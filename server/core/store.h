// Where the scheduler's state is durable. One writer (the dispatcher's thread) and any number of readers.
// The SQLite store (storage/) and the fake (tests/fakes/) pass the same contract (tests/storage/store_contract.h).
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/core/access.h"
#include "server/core/job.h"

namespace longhaul::server {

struct RequestKey {
  std::string project;
  std::string request_id;
  std::string body_sha256;
  std::string job_id;
  int64_t create_wall_micros = 0;
};

struct JobFilter {
  std::string project;  // "" = all
  std::vector<JobState> states;
  std::string model;
  std::map<std::string, std::string> labels;
  int64_t created_after_micros = 0;
  int64_t created_before_micros = 0;  // 0 = no bound
  std::string id_prefix;
  bool oldest_first = false;
  int page_size = 50;
  std::string page_token;  // opaque; INVALID_ARGUMENT where it is not one of ours
};

struct JobPage {
  std::vector<Job> jobs;
  std::string next_page_token;
};

// One write transaction, BEGIN IMMEDIATE. Writer's thread only. Destroyed without Commit: rolled back.
class StoreTransaction {
 public:
  virtual ~StoreTransaction() = default;
  // The command between BeginCommand and the matching end is undone alone (a savepoint).
  virtual absl::Status BeginCommand() = 0;
  virtual absl::Status EndCommand(bool keep) = 0;

  virtual absl::Status PutJob(const Job& job) = 0;  // insert or replace the whole row
  // With attempts, events, metrics, checkpoints; the request key stays. The job is among ListDeletedJobs until
  // ForgetDeletedJob: its files are to be removed. Blobs of its checkpoints and its artifact: as DeleteCheckpoint's.
  virtual absl::Status DeleteJob(const std::string& id, int64_t grace_wall_micros) = 0;
  virtual absl::Status ForgetDeletedJob(const std::string& id) = 0;
  virtual absl::Status PutAttempt(const std::string& job_id, const Attempt& attempt) = 0;
  virtual absl::Status AddEvent(const std::string& job_id, const JobEvent& event) = 0;  // ABORTED unless dense
  virtual absl::Status PutCheckpoint(const std::string& job_id, const Checkpoint& checkpoint) = 0;
  // Blobs of it that nothing refers to any more: their grace began at `grace_wall_micros` from now on, earlier or later
  // than it did. One that was renewed since the checkpoint was committed is kept as long as that at least.
  virtual absl::Status DeleteCheckpoint(const std::string& job_id, int64_t step, int64_t grace_wall_micros) = 0;
  // Of a run of more than some 100,000 points the older ones may be thinned, evenly; the newest 1,000 and the first
  // stay.
  virtual absl::Status PutMetrics(const std::string& job_id, const std::vector<MetricPoint>& points) = 0;
  virtual absl::Status ThinMetrics(const std::string& job_id, int64_t most_points) = 0;
  virtual absl::Status PutRequestKey(const RequestKey& key) = 0;
  // The oldest `most` of those made before `wall_micros`; how many there were.
  virtual absl::StatusOr<int> DeleteRequestKeysBefore(int64_t wall_micros, int most) = 0;
  virtual absl::Status PutWorker(const Worker& worker) = 0;
  virtual absl::Status DeleteWorker(const std::string& id) = 0;                // OK where it is not there
  virtual absl::Status PutBlob(const BlobRef& blob, int64_t wall_micros) = 0;  // present, grace renewed
  // The project has shown that it has the bytes. Forgotten with the blob. REQUIRES: PutBlob before.
  virtual absl::Status PutBlobProject(const BlobRef& blob, const std::string& project) = 0;
  // Forgets blobs that no job and no kept checkpoint refers to and whose grace began before `wall_micros`, `most` of
  // them; returns them, so that their files can go after the commit.
  virtual absl::StatusOr<std::vector<BlobRef>> DropUnreferencedBlobs(int64_t wall_micros, int most) = 0;
  virtual absl::Status AddAudit(const AuditRecord& record) = 0;  // the store gives the number
  // Records of the last limits::kAuditKeepDays cannot be deleted: ABORTED.
  virtual absl::Status DeleteAuditBefore(int64_t wall_micros) = 0;
  virtual absl::Status Commit() = 0;
};

// Each sees the last commit. NOT_FOUND reason JOB_NOT_FOUND names the id.
class StoreReads {
 public:
  virtual ~StoreReads() = default;
  virtual absl::StatusOr<Job> GetJob(const std::string& id) = 0;
  virtual absl::StatusOr<JobPage> ListJobs(const JobFilter& filter) = 0;
  virtual absl::StatusOr<std::optional<RequestKey>> GetRequestKey(const std::string& project,
                                                                  const std::string& request_id) = 0;
  virtual absl::StatusOr<std::vector<JobEvent>> ListEvents(const std::string& job_id, int64_t after_sequence,
                                                           int most) = 0;
  virtual absl::StatusOr<std::vector<Attempt>> ListAttempts(const std::string& job_id) = 0;
  virtual absl::StatusOr<std::vector<Checkpoint>> ListCheckpoints(const std::string& job_id) = 0;  // by step
  // One point a step, the highest attempt's, by step.
  virtual absl::StatusOr<std::vector<MetricPoint>> ListMetrics(const std::string& job_id, int64_t after_step,
                                                               int most) = 0;
  virtual absl::StatusOr<std::vector<Worker>> ListWorkers() = 0;
  virtual absl::StatusOr<bool> HasBlob(const BlobRef& blob) = 0;
  // When the grace of a blob began that nothing refers to; none where something does, or where it is not there.
  virtual absl::StatusOr<std::optional<int64_t>> IdleBlobGraceMicros(const BlobRef& blob) = 0;
  // Uploaded by the project, or kept by one of its jobs.
  virtual absl::StatusOr<bool> BlobInProject(const BlobRef& blob, const std::string& project) = 0;
  // Of the blobs that the project has uploaded and that are still there.
  struct Uploads {
    int64_t blobs = 0;
    int64_t bytes = 0;
  };
  virtual absl::StatusOr<Uploads> Uploaded(const std::string& project) = 0;
  virtual absl::StatusOr<std::vector<AuditRecord>> ListAudit(int64_t after_number, int most) = 0;
  // Every job that is not terminal, by create_number: what the dispatcher loads at start.
  virtual absl::StatusOr<std::vector<Job>> LoadLiveJobs() = 0;
  virtual absl::StatusOr<uint64_t> MaxCreateNumber() = 0;
  // Jobs that were deleted and not forgotten: by id, those behind `after`, at most `most`.
  virtual absl::StatusOr<std::vector<std::string>> ListDeletedJobs(const std::string& after, int most) = 0;
};

// What the dispatcher has of the store: its thread only. These reads wait for nobody else's, however many clients read:
// who calls is lost, or has no lease, while the dispatcher waits.
class StoreWriter : public virtual StoreReads {
 public:
  virtual absl::StatusOr<std::unique_ptr<StoreTransaction>> Begin() = 0;
};

// The whole store. Its own reads are everybody's, from any thread: they wait for a connection while others have all.
class Store : public virtual StoreReads {
 public:
  virtual StoreWriter& Writer() = 0;  // always the same
  absl::StatusOr<std::unique_ptr<StoreTransaction>> Begin() { return Writer().Begin(); }
  struct Sizes {
    int64_t db_bytes = 0;
    int64_t wal_bytes = 0;
    int64_t blob_bytes = 0;
  };
  virtual Sizes GetSizes() = 0;
};

}  // namespace longhaul::server
