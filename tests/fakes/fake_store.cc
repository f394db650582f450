#include "tests/fakes/fake_store.h"

#include <algorithm>
#include <optional>
#include <set>

#include "base/clock.h"
#include "base/error.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "server/core/codec.h"
#include "server/core/page_token.h"

namespace longhaul::server {
namespace {

std::set<std::string> Referenced(const FakeStore::State& state) {
  std::set<std::string> kept;
  for (const auto& [id, rows] : state.jobs) {
    for (const BlobRef& blob : rows->job.inputs) kept.insert(blob.sha256);
    for (const NamedBlob& file : rows->job.artifact) kept.insert(file.blob.sha256);
    for (const auto& [step, checkpoint] : rows->checkpoints) {
      for (const NamedBlob& file : checkpoint.files) kept.insert(file.blob.sha256);
    }
  }
  return kept;
}

}  // namespace

class FakeTransaction final : public StoreTransaction {
 public:
  explicit FakeTransaction(FakeStore* store) : store_(store), state_(store->state()), owner_(++store->owners_) {}

  absl::Status BeginCommand() override {
    savepoint_ = state_;
    own_.reset();
    owner_ = ++store_->owners_;
    return absl::OkStatus();
  }
  absl::Status EndCommand(bool keep) override {
    if (!keep) {
      state_ = savepoint_;
      own_.reset();
    }
    savepoint_.reset();
    owner_ = ++store_->owners_;
    return absl::OkStatus();
  }

  absl::Status PutJob(const Job& job) override {
    LH_RETURN_IF_ERROR(Fails());
    // Through the codec, so that what is not persisted is lost here, too.
    LH_ASSIGN_OR_RETURN(Job kept, DecodeJob(EncodeJob(job)));
    if (!Own().jobs.contains(job.id)) Own().jobs[job.id] = std::make_shared<FakeStore::Rows>();
    (*RowsOf(job.id))->job = std::move(kept);
    return absl::OkStatus();
  }
  absl::Status DeleteJob(const std::string& id, int64_t grace_wall_micros) override {
    LH_RETURN_IF_ERROR(Fails());
    const auto found = state_->jobs.find(id);
    if (found == state_->jobs.end()) return absl::OkStatus();
    const std::shared_ptr<FakeStore::Rows> gone = found->second;
    Own().jobs.erase(id);
    Own().deleted.insert(id);
    for (const auto& [step, checkpoint] : gone->checkpoints) {
      SetGrace(checkpoint.files, checkpoint.commit_wall_micros, grace_wall_micros);
    }
    SetGrace(gone->job.artifact, gone->job.artifact_wall_micros, grace_wall_micros);
    return absl::OkStatus();
  }
  absl::Status ForgetDeletedJob(const std::string& id) override {
    LH_RETURN_IF_ERROR(Fails());
    Own().deleted.erase(id);
    return absl::OkStatus();
  }
  absl::Status PutAttempt(const std::string& job_id, const Attempt& attempt) override {
    LH_ASSIGN_OR_RETURN(FakeStore::Rows * rows, RowsOf(job_id));
    rows->attempts[attempt.number] = attempt;
    return absl::OkStatus();
  }
  absl::Status AddEvent(const std::string& job_id, const JobEvent& event) override {
    LH_ASSIGN_OR_RETURN(FakeStore::Rows * rows, RowsOf(job_id));
    if (event.sequence != static_cast<int64_t>(rows->events.size()) + 1) {
      return MakeError(absl::StatusCode::kAborted, "SEQUENCE_NOT_DENSE", "event " + std::to_string(event.sequence));
    }
    rows->events.push_back(std::make_shared<const JobEvent>(event));
    return absl::OkStatus();
  }
  absl::Status PutCheckpoint(const std::string& job_id, const Checkpoint& checkpoint) override {
    LH_ASSIGN_OR_RETURN(FakeStore::Rows * rows, RowsOf(job_id));
    rows->checkpoints[checkpoint.step] = checkpoint;
    return absl::OkStatus();
  }
  absl::Status DeleteCheckpoint(const std::string& job_id, int64_t step, int64_t grace_wall_micros) override {
    LH_RETURN_IF_ERROR(Fails());
    if (!state_->jobs.contains(job_id)) return absl::OkStatus();
    const auto gone = (*RowsOf(job_id))->checkpoints.extract(step);
    if (!gone.empty()) SetGrace(gone.mapped().files, gone.mapped().commit_wall_micros, grace_wall_micros);
    return absl::OkStatus();
  }
  absl::Status PutMetrics(const std::string& job_id, const std::vector<MetricPoint>& points) override {
    LH_ASSIGN_OR_RETURN(FakeStore::Rows * rows, RowsOf(job_id));
    for (const MetricPoint& point : points) {
      MetricPoint& kept = rows->metrics[point.step];
      if (kept.attempt <= point.attempt) kept = {point.attempt, point.step, point.progress, 0, 0};
    }
    return absl::OkStatus();
  }
  absl::Status ThinMetrics(const std::string& job_id, int64_t most_points) override {
    LH_RETURN_IF_ERROR(Fails());
    if (!state_->jobs.contains(job_id)) return absl::OkStatus();
    std::map<int64_t, MetricPoint>& points = (*RowsOf(job_id))->metrics;
    const int64_t count = static_cast<int64_t>(points.size());
    if (count <= most_points || most_points < 2) return absl::OkStatus();
    int64_t index = 0;
    int64_t picked = 0;
    for (auto it = points.begin(); it != points.end(); ++index) {
      if (index == picked * (count - 1) / (most_points - 1)) {
        ++picked;
        ++it;
      } else {
        it = points.erase(it);
      }
    }
    return absl::OkStatus();
  }
  absl::Status PutRequestKey(const RequestKey& key) override {
    LH_RETURN_IF_ERROR(Fails());
    Own().keys[{key.project, key.request_id}] = key;
    return absl::OkStatus();
  }
  absl::StatusOr<int> DeleteRequestKeysBefore(int64_t wall_micros, int most) override {
    LH_RETURN_IF_ERROR(Fails());
    std::multimap<int64_t, std::pair<std::string, std::string>> old;
    for (const auto& [name, key] : state_->keys) {
      if (key.create_wall_micros < wall_micros) old.emplace(key.create_wall_micros, name);
    }
    int deleted = 0;
    for (const auto& [micros, name] : old) {
      if (deleted == most) break;
      Own().keys.erase(name);
      ++deleted;
    }
    return deleted;
  }
  absl::Status PutWorker(const Worker& worker) override {
    LH_RETURN_IF_ERROR(Fails());
    LH_ASSIGN_OR_RETURN(Worker kept, DecodeWorker(EncodeWorker(worker)));
    Own().workers[worker.id] = std::make_shared<const Worker>(std::move(kept));
    return absl::OkStatus();
  }
  absl::Status DeleteWorker(const std::string& id) override {
    LH_RETURN_IF_ERROR(Fails());
    Own().workers.erase(id);
    return absl::OkStatus();
  }
  absl::Status PutBlob(const BlobRef& blob, int64_t wall_micros) override {
    LH_RETURN_IF_ERROR(Fails());
    auto& entry = Own().blobs[blob.sha256];
    entry = {blob, std::max(entry.second, wall_micros)};
    return absl::OkStatus();
  }
  absl::Status PutBlobProject(const BlobRef& blob, const std::string& project) override {
    LH_RETURN_IF_ERROR(Fails());
    if (!Own().blobs.contains(blob.sha256)) {
      return MakeError(absl::StatusCode::kAborted, "STORE_CONSTRAINT", "there is no blob " + blob.sha256);
    }
    Own().blob_projects.emplace(project, blob.sha256);
    return absl::OkStatus();
  }
  absl::StatusOr<std::vector<BlobRef>> DropUnreferencedBlobs(int64_t wall_micros, int most) override {
    LH_RETURN_IF_ERROR(Fails());
    const std::set<std::string> kept = Referenced(*state_);
    std::vector<BlobRef> dropped;
    for (const auto& [sha256, entry] : state_->blobs) {
      if (static_cast<int>(dropped.size()) >= most) break;
      if (entry.second < wall_micros && !kept.contains(sha256)) dropped.push_back(entry.first);
    }
    for (const BlobRef& blob : dropped) {
      Own().blobs.erase(blob.sha256);
      std::erase_if(Own().blob_projects, [&](const auto& entry) { return entry.second == blob.sha256; });
    }
    return dropped;
  }
  absl::Status AddAudit(const AuditRecord& record) override {
    LH_RETURN_IF_ERROR(Fails());
    Own().audit.push_back(record);
    Own().audit.back().number = ++Own().audit_numbers;
    return absl::OkStatus();
  }
  absl::Status DeleteAuditBefore(int64_t wall_micros) override {
    LH_RETURN_IF_ERROR(Fails());
    const int64_t kept_micros = RealClock().WallMicros() - limits::kAuditKeepDays * 24 * 3600 * 1'000'000;
    bool any = false;
    for (const AuditRecord& record : state_->audit) {
      if (record.wall_micros < wall_micros && record.wall_micros > kept_micros) {
        return MakeError(absl::StatusCode::kAborted, "STORE_CONSTRAINT", "the audit log is append-only");
      }
      any = any || record.wall_micros < wall_micros;
    }
    if (!any) return absl::OkStatus();
    std::erase_if(Own().audit, [&](const AuditRecord& record) { return record.wall_micros < wall_micros; });
    return absl::OkStatus();
  }
  absl::Status Commit() override {
    if (store_->fail_commits_ > 0) {
      --store_->fail_commits_;
      return MakeError(absl::StatusCode::kResourceExhausted, "DISK_FULL", "the disk is full (injected)");
    }
    std::lock_guard lock(store_->mutex_);
    store_->state_ = std::move(state_);
    ++store_->commits_;
    if (store_->lie_commits_ == 0) return absl::OkStatus();
    --store_->lie_commits_;
    store_->lied_ = true;
    return MakeError(absl::StatusCode::kUnavailable, "STORE_IO", "it is not known whether this was kept (injected)");
  }

 private:
  void SetGrace(const std::vector<NamedBlob>& files, int64_t commit_wall_micros, int64_t grace_wall_micros) {
    const std::set<std::string> kept = Referenced(*state_);
    for (const NamedBlob& file : files) {
      const std::string& sha256 = file.blob.sha256;
      if (kept.contains(sha256) || !state_->blobs.contains(sha256)) continue;
      int64_t& grace = Own().blobs.at(sha256).second;
      grace = grace <= commit_wall_micros ? grace_wall_micros : std::max(grace, grace_wall_micros);
    }
  }
  absl::Status Fails() {
    if (store_->fail_writes_ == 0) return absl::OkStatus();
    if (store_->writes_before_failure_ > 0) {
      --store_->writes_before_failure_;
      return absl::OkStatus();
    }
    --store_->fail_writes_;
    return MakeError(absl::StatusCode::kUnavailable, "STORE_IO", "a write failed (injected)");
  }
  // The job's rows, to be written to: this command's own copy.
  absl::StatusOr<FakeStore::Rows*> RowsOf(const std::string& job_id) {
    LH_RETURN_IF_ERROR(Fails());
    const auto found = Own().jobs.find(job_id);
    if (found == Own().jobs.end()) {
      return MakeError(absl::StatusCode::kAborted, "STORE_CONSTRAINT", "there is no job " + job_id);
    }
    if (found->second->owner != owner_) {
      found->second = std::make_shared<FakeStore::Rows>(*found->second);
      found->second->owner = owner_;
    }
    return found->second.get();
  }

  // To be written to: copied from what others may still look at before this command's first write.
  FakeStore::State& Own() {
    if (own_ == nullptr) {
      own_ = std::make_shared<FakeStore::State>(*state_);
      state_ = own_;
    }
    return *own_;
  }

  FakeStore* store_;
  std::shared_ptr<const FakeStore::State> state_;
  std::shared_ptr<FakeStore::State> own_;  // null, or state_
  std::shared_ptr<const FakeStore::State> savepoint_;
  uint64_t owner_;
};

namespace {

bool Matches(const Job& job, const JobFilter& filter) {
  if (!filter.project.empty() && job.project != filter.project) return false;
  if (!filter.states.empty() &&
      std::find(filter.states.begin(), filter.states.end(), job.state) == filter.states.end()) {
    return false;
  }
  if (!filter.model.empty() && job.model != filter.model) return false;
  for (const auto& [key, value] : filter.labels) {
    const auto label = job.labels.find(key);
    if (label == job.labels.end() || label->second != value) return false;
  }
  if (filter.created_after_micros != 0 && job.create_wall_micros <= filter.created_after_micros) return false;
  if (filter.created_before_micros != 0 && job.create_wall_micros >= filter.created_before_micros) return false;
  return job.id.compare(0, filter.id_prefix.size(), filter.id_prefix) == 0;
}

template <class Key, class T>
std::vector<T> ValuesOf(const std::map<Key, T>& rows) {
  std::vector<T> values;
  for (const auto& [key, value] : rows) values.push_back(value);
  return values;
}

}  // namespace

absl::StatusOr<std::unique_ptr<StoreTransaction>> FakeStore::Begin() { return std::make_unique<FakeTransaction>(this); }

absl::StatusOr<Job> FakeStore::GetJob(const std::string& id) {
  const auto now = state();
  const auto found = now->jobs.find(id);
  if (found == now->jobs.end()) {
    return MakeError(absl::StatusCode::kNotFound, "JOB_NOT_FOUND", "there is no job " + id);
  }
  return found->second->job;
}

absl::StatusOr<JobPage> FakeStore::ListJobs(const JobFilter& filter) {
  uint64_t last = 0;
  if (!filter.page_token.empty()) {
    LH_ASSIGN_OR_RETURN(last, ReadPageToken(filter));
  }
  const auto now = state();
  std::vector<Job> jobs;
  for (const auto& [id, rows] : now->jobs) {
    const Job& job = rows->job;
    const bool behind = last == 0 || (filter.oldest_first ? job.create_number > last : job.create_number < last);
    if (behind && Matches(job, filter)) jobs.push_back(job);
  }
  std::sort(jobs.begin(), jobs.end(), [&](const Job& a, const Job& b) {
    return filter.oldest_first ? a.create_number < b.create_number : a.create_number > b.create_number;
  });
  JobPage page;
  const size_t size = static_cast<size_t>(std::clamp(filter.page_size, 1, limits::kMaxPageSize));
  if (jobs.size() > size) {
    jobs.resize(size);
    page.next_page_token = MakePageToken(filter, jobs.back().create_number);
  }
  page.jobs = std::move(jobs);
  return page;
}

absl::StatusOr<std::optional<RequestKey>> FakeStore::GetRequestKey(const std::string& project,
                                                                   const std::string& request_id) {
  const auto now = state();
  const auto found = now->keys.find({project, request_id});
  if (found == now->keys.end()) return std::optional<RequestKey>();
  return std::optional<RequestKey>(found->second);
}

absl::StatusOr<std::vector<JobEvent>> FakeStore::ListEvents(const std::string& job_id, int64_t after_sequence,
                                                            int most) {
  const auto now = state();
  std::vector<JobEvent> events;
  const auto found = now->jobs.find(job_id);
  if (found == now->jobs.end()) return events;
  const auto& all = found->second->events;  // sequence i + 1 at i
  for (size_t i = static_cast<size_t>(std::max<int64_t>(after_sequence, 0)); i < all.size(); ++i) {
    if (static_cast<int>(events.size()) >= most) break;
    events.push_back(*all[i]);
  }
  return events;
}

absl::StatusOr<std::vector<Attempt>> FakeStore::ListAttempts(const std::string& job_id) {
  const auto now = state();
  const auto found = now->jobs.find(job_id);
  return found == now->jobs.end() ? std::vector<Attempt>() : ValuesOf(found->second->attempts);
}

absl::StatusOr<std::vector<Checkpoint>> FakeStore::ListCheckpoints(const std::string& job_id) {
  const auto now = state();
  const auto found = now->jobs.find(job_id);
  return found == now->jobs.end() ? std::vector<Checkpoint>() : ValuesOf(found->second->checkpoints);
}

absl::StatusOr<std::vector<MetricPoint>> FakeStore::ListMetrics(const std::string& job_id, int64_t after_step,
                                                                int most) {
  const auto now = state();
  const auto found = now->jobs.find(job_id);
  if (found == now->jobs.end()) return std::vector<MetricPoint>();
  std::vector<MetricPoint> points = ValuesOf(found->second->metrics);
  std::erase_if(points, [&](const MetricPoint& point) { return point.step <= after_step; });
  if (static_cast<int>(points.size()) > most) points.resize(static_cast<size_t>(most));
  return points;
}

absl::StatusOr<std::vector<Worker>> FakeStore::ListWorkers() {
  const auto now = state();
  std::vector<Worker> workers;
  for (const auto& [id, worker] : now->workers) workers.push_back(*worker);
  return workers;
}

absl::StatusOr<bool> FakeStore::HasBlob(const BlobRef& blob) {
  const auto now = state();
  const auto found = now->blobs.find(blob.sha256);
  return found != now->blobs.end() && found->second.first.size_bytes == blob.size_bytes;
}

absl::StatusOr<std::optional<int64_t>> FakeStore::IdleBlobGraceMicros(const BlobRef& blob) {
  if (!*HasBlob(blob)) return std::nullopt;
  const auto now = state();
  if (Referenced(*now).contains(blob.sha256)) return std::nullopt;
  return std::optional<int64_t>(now->blobs.at(blob.sha256).second);
}

absl::StatusOr<bool> FakeStore::BlobInProject(const BlobRef& blob, const std::string& project) {
  const auto now = state();
  if (now->blob_projects.contains({project, blob.sha256})) return true;
  for (const auto& [id, rows] : now->jobs) {
    const Job& job = rows->job;
    if (job.project != project) continue;
    for (const BlobRef& input : job.inputs) {
      if (input.sha256 == blob.sha256) return true;
    }
    for (const NamedBlob& file : job.artifact) {
      if (file.blob.sha256 == blob.sha256) return true;
    }
    for (const auto& [step, checkpoint] : rows->checkpoints) {
      for (const NamedBlob& file : checkpoint.files) {
        if (file.blob.sha256 == blob.sha256) return true;
      }
    }
  }
  return false;
}

absl::StatusOr<Store::Uploads> FakeStore::Uploaded(const std::string& project) {
  const auto now = state();
  Uploads uploads;
  for (const auto& [of_project, sha256] : now->blob_projects) {
    if (of_project != project) continue;
    ++uploads.blobs;
    uploads.bytes += now->blobs.at(sha256).first.size_bytes;
  }
  return uploads;
}

absl::StatusOr<std::vector<AuditRecord>> FakeStore::ListAudit(int64_t after_number, int most) {
  const auto now = state();
  std::vector<AuditRecord> records;
  for (const AuditRecord& record : now->audit) {
    if (record.number > after_number && static_cast<int>(records.size()) < most) records.push_back(record);
  }
  return records;
}

absl::StatusOr<std::vector<Job>> FakeStore::LoadLiveJobs() {
  const auto now = state();
  std::vector<Job> jobs;
  for (const auto& [id, rows] : now->jobs) {
    if (!IsTerminal(rows->job.state)) jobs.push_back(rows->job);
  }
  std::sort(jobs.begin(), jobs.end(), [](const Job& a, const Job& b) { return a.create_number < b.create_number; });
  return jobs;
}

absl::StatusOr<uint64_t> FakeStore::MaxCreateNumber() {
  const auto now = state();
  uint64_t most = 0;
  for (const auto& [id, rows] : now->jobs) most = std::max(most, rows->job.create_number);
  return most;
}

absl::StatusOr<std::vector<std::string>> FakeStore::ListDeletedJobs(const std::string& after, int most) {
  const auto now = state();
  std::vector<std::string> ids;
  for (const std::string& id : now->deleted) {
    if (id > after && static_cast<int>(ids.size()) < most) ids.push_back(id);
  }
  return ids;
}

}  // namespace longhaul::server
