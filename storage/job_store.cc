#include "storage/job_store.h"

#include <condition_variable>
#include <mutex>
#include <utility>
#include <vector>

#include "base/env.h"
#include "base/error.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "server/core/codec.h"
#include "storage/access_store.h"
#include "storage/job_list.h"
#include "storage/job_query.h"
#include "storage/job_writer.h"
#include "storage/migrations.h"
#include "storage/sqlite_db.h"
#include "storage/state_id.h"

namespace longhaul::storage {
namespace {

using namespace server;  // NOLINT: the domain's values are this file's subject

// Read-only connections, opened when first needed, at most `most`. Thread-safe.
class ReaderPool {
 public:
  ReaderPool(std::string path, int most) : path_(std::move(path)), most_(most) {}

  class Lease {
   public:
    Lease(ReaderPool* pool, std::unique_ptr<Db> db) : pool_(pool), db_(std::move(db)) {}
    Lease(Lease&&) = default;
    Lease& operator=(Lease&&) = delete;
    ~Lease() {
      if (db_ != nullptr) pool_->Return(std::move(db_));
    }
    Db* operator->() const { return db_.get(); }
    Db* get() const { return db_.get(); }

   private:
    ReaderPool* pool_;
    std::unique_ptr<Db> db_;
  };

  absl::StatusOr<Lease> Take() {
    {
      std::unique_lock lock(mutex_);
      returned_.wait(lock, [this] { return !idle_.empty() || open_ < most_; });
      if (!idle_.empty()) {
        std::unique_ptr<Db> db = std::move(idle_.back());
        idle_.pop_back();
        return Lease(this, std::move(db));
      }
      ++open_;
    }
    absl::StatusOr<std::unique_ptr<Db>> db = Db::Open(path_, Db::Mode::kReadOnly);
    if (db.ok()) return Lease(this, *std::move(db));
    {
      std::lock_guard lock(mutex_);
      --open_;
    }
    returned_.notify_one();
    return db.status();
  }
  // REQUIRES: none is leased, nor will be.
  void Close() {
    std::lock_guard lock(mutex_);
    idle_.clear();
  }

 private:
  void Return(std::unique_ptr<Db> db) {
    {
      std::lock_guard lock(mutex_);
      idle_.push_back(std::move(db));
    }
    returned_.notify_one();
  }

  const std::string path_;
  const int most_;
  std::mutex mutex_;  // guards idle_, open_
  std::condition_variable returned_;
  std::vector<std::unique_ptr<Db>> idle_;
  int open_ = 0;
};

// The reads of Base, StoreWriter or Store, on connections of its own.
template <class Base>
class PooledReads : public Base {
 public:
  PooledReads(const std::string& path, int most) : readers_(path, most) {}

  absl::StatusOr<Job> GetJob(const std::string& id) override {
    LH_ASSIGN_OR_RETURN(const ReaderPool::Lease db, readers_.Take());
    return QueryJob(db.get(), id);
  }
  absl::StatusOr<JobPage> ListJobs(const JobFilter& filter) override {
    LH_ASSIGN_OR_RETURN(const ReaderPool::Lease db, readers_.Take());
    return QueryJobs(db.get(), filter);
  }
  absl::StatusOr<std::optional<RequestKey>> GetRequestKey(const std::string& project,
                                                          const std::string& request_id) override {
    LH_ASSIGN_OR_RETURN(const ReaderPool::Lease db, readers_.Take());
    return QueryRequestKey(db.get(), project, request_id);
  }
  absl::StatusOr<std::vector<JobEvent>> ListEvents(const std::string& job_id, int64_t after_sequence,
                                                   int most) override {
    LH_ASSIGN_OR_RETURN(const ReaderPool::Lease db, readers_.Take());
    return QueryEvents(db.get(), job_id, after_sequence, most);
  }
  absl::StatusOr<std::vector<Attempt>> ListAttempts(const std::string& job_id) override {
    LH_ASSIGN_OR_RETURN(const ReaderPool::Lease db, readers_.Take());
    return QueryAttempts(db.get(), job_id);
  }
  absl::StatusOr<std::vector<Checkpoint>> ListCheckpoints(const std::string& job_id) override {
    LH_ASSIGN_OR_RETURN(const ReaderPool::Lease db, readers_.Take());
    return QueryCheckpoints(db.get(), job_id);
  }
  absl::StatusOr<std::vector<MetricPoint>> ListMetrics(const std::string& job_id, int64_t after_step,
                                                       int most) override {
    LH_ASSIGN_OR_RETURN(const ReaderPool::Lease db, readers_.Take());
    return QueryMetrics(db.get(), job_id, after_step, most);
  }
  absl::StatusOr<std::vector<Worker>> ListWorkers() override {
    LH_ASSIGN_OR_RETURN(const ReaderPool::Lease db, readers_.Take());
    return QueryWorkers(db.get());
  }
  absl::StatusOr<bool> HasBlob(const BlobRef& blob) override {
    LH_ASSIGN_OR_RETURN(const ReaderPool::Lease db, readers_.Take());
    return QueryHasBlob(db.get(), blob);
  }
  absl::StatusOr<std::optional<int64_t>> IdleBlobGraceMicros(const BlobRef& blob) override {
    LH_ASSIGN_OR_RETURN(const ReaderPool::Lease db, readers_.Take());
    return QueryIdleBlobGraceMicros(db.get(), blob);
  }
  absl::StatusOr<bool> BlobInProject(const BlobRef& blob, const std::string& project) override {
    LH_ASSIGN_OR_RETURN(const ReaderPool::Lease db, readers_.Take());
    return QueryBlobInProject(db.get(), blob, project);
  }
  absl::StatusOr<StoreReads::Uploads> Uploaded(const std::string& project) override {
    LH_ASSIGN_OR_RETURN(const ReaderPool::Lease db, readers_.Take());
    return QueryUploaded(db.get(), project);
  }
  absl::StatusOr<std::vector<AuditRecord>> ListAudit(int64_t after_number, int most) override {
    LH_ASSIGN_OR_RETURN(const ReaderPool::Lease db, readers_.Take());
    return QueryAudit(db.get(), after_number, most);
  }
  absl::StatusOr<std::vector<Job>> LoadLiveJobs() override {
    LH_ASSIGN_OR_RETURN(const ReaderPool::Lease db, readers_.Take());
    return QueryLiveJobs(db.get());
  }
  absl::StatusOr<uint64_t> MaxCreateNumber() override {
    LH_ASSIGN_OR_RETURN(const ReaderPool::Lease db, readers_.Take());
    LH_ASSIGN_OR_RETURN(const int64_t number, db->QueryInt("SELECT IFNULL(MAX(create_number), 0) FROM jobs"));
    return static_cast<uint64_t>(number);
  }
  absl::StatusOr<std::vector<std::string>> ListDeletedJobs(const std::string& after, int most) override {
    LH_ASSIGN_OR_RETURN(const ReaderPool::Lease db, readers_.Take());
    return QueryDeletedJobs(db.get(), after, most);
  }

 protected:
  ReaderPool readers_;
};

class JobStoreWriter final : public PooledReads<StoreWriter> {
 public:
  JobStoreWriter(const std::string& path, std::unique_ptr<Db> db) : PooledReads(path, 1), db_(std::move(db)) {}
  // The one connection that it reads with, and by a first read all its files: later there might be no descriptor.
  absl::Status OpenReader() { return MaxCreateNumber().status(); }
  void CloseReader() { readers_.Close(); }
  absl::StatusOr<std::unique_ptr<StoreTransaction>> Begin() override { return BeginJobTransaction(db_.get()); }

 private:
  const std::unique_ptr<Db> db_;
};

class JobStore final : public PooledReads<Store> {
 public:
  JobStore(std::string state_dir, FileLock lock, std::unique_ptr<Db> writer)
      : PooledReads(JoinPath(state_dir, "state.db"), limits::kMaxStoreReaders),
        state_dir_(std::move(state_dir)),
        lock_(std::move(lock)),
        writer_(JoinPath(state_dir_, "state.db"), std::move(writer)) {}
  // Who writes is closed last: only then the log goes into the database.
  ~JobStore() override {
    readers_.Close();
    writer_.CloseReader();
  }

  absl::Status OpenReader() { return writer_.OpenReader(); }
  StoreWriter& Writer() override { return writer_; }
  Sizes GetSizes() override {
    Sizes sizes;
    sizes.db_bytes = FileSize(JoinPath(state_dir_, "state.db")).value_or(0);
    sizes.wal_bytes = FileSize(JoinPath(state_dir_, "state.db-wal")).value_or(0);
    const absl::StatusOr<ReaderPool::Lease> db = readers_.Take();
    if (db.ok()) {
      sizes.blob_bytes = (*db)->QueryInt("SELECT value FROM totals WHERE name='blob_bytes'").value_or(0);
    }
    return sizes;
  }

 private:
  const std::string state_dir_;
  const FileLock lock_;
  JobStoreWriter writer_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Store>> OpenJobStore(const std::string& state_dir) {
  LH_RETURN_IF_ERROR(CreateDirs(state_dir));
  absl::StatusOr<FileLock> lock = FileLock::Acquire(JoinPath(state_dir, "lock"));
  if (!lock.ok()) return Annotate(lock.status(), "the state folder " + state_dir);
  LH_RETURN_IF_ERROR(OwnStateFolder(state_dir));
  LH_ASSIGN_OR_RETURN(std::unique_ptr<Db> db, Db::Open(JoinPath(state_dir, "state.db"), Db::Mode::kReadWrite));
  const absl::Status migrated = Migrate(db.get());
  if (!migrated.ok()) return Annotate(migrated, "the state folder " + state_dir);
  // A process that died between a commit's write and its sync left what we can read and a power cut could still take:
  // the checkpoint syncs the log before anybody is told of it.
  LH_RETURN_IF_ERROR(db->Exec("PRAGMA wal_checkpoint(TRUNCATE)"));
  auto store = std::make_unique<JobStore>(state_dir, *std::move(lock), std::move(db));
  LH_RETURN_IF_ERROR(store->OpenReader());
  return store;
}

}  // namespace longhaul::storage
