#include "tests/simulation/backend.h"

#include <optional>

#include "base/check.h"
#include "base/env.h"
#include "base/hash.h"
#include "base/random.h"
#include "base/status_macros.h"
#include "storage/blob_store.h"
#include "storage/check_state.h"
#include "storage/job_store.h"
#include "tests/fakes/fake_server_parts.h"
#include "tests/fakes/fake_store.h"
#include "tests/fakes/power_cut_disk.h"
#include "tests/storage/temp_dir.h"

namespace longhaul::simulation {
namespace {

using server::BlobRef;

class MemoryBackend final : public Backend {
 public:
  server::Store* store() override { return &store_; }
  server::BlobIndex* blobs() override { return &blobs_; }
  absl::StatusOr<BlobRef> Upload(const std::string& content) override { return blobs_.Add(content); }
  bool Holds(const BlobRef& blob) override { return blobs_.Present(blob).value_or(false); }
  void LoseBlob(const BlobRef& blob) override { blobs_.Lose(blob); }
  void FailCommits(int count) override { store_.FailCommits(count); }
  void FailWrites(int count) override { store_.FailWrites(count); }
  void LieAboutCommits(int count) override { store_.LieAboutCommits(count); }
  bool lied() const override { return store_.lied(); }
  void CutPowerAfter(uint64_t) override {}
  bool power_is_off() const override { return false; }
  int power_cuts() const override { return 0; }
  absl::Status Reopen() override { return absl::OkStatus(); }
  std::vector<std::string> Problems() override { return {}; }

 private:
  server::FakeStore store_;
  server::FakeBlobs blobs_;
};

class DiskBackend final : public Backend {
 public:
  explicit DiskBackend(uint64_t seed) : seed_(seed) {
    LH_CHECK(CreateDirs(Folder()).ok());
    disk_.emplace(Folder());
  }
  ~DiskBackend() override { Close(); }

  server::Store* store() override { return store_.get(); }
  server::BlobIndex* blobs() override { return blobs_.get(); }
  absl::StatusOr<BlobRef> Upload(const std::string& content) override {
    const BlobRef blob{Sha256Hex(content), static_cast<int64_t>(content.size())};
    LH_ASSIGN_OR_RETURN(const std::unique_ptr<storage::BlobStore::Upload> upload, blobs_->BeginUpload(blob));
    LH_RETURN_IF_ERROR(upload->Append(
        upload->committed_bytes(), std::string_view(content).substr(static_cast<size_t>(upload->committed_bytes()))));
    LH_RETURN_IF_ERROR(upload->Finish());
    return blob;
  }
  bool Holds(const BlobRef& blob) override {
    const absl::StatusOr<std::string> bytes = blobs_->Read(blob, 0, blob.size_bytes);
    return bytes.ok() && Sha256Hex(*bytes) == blob.sha256;
  }
  void LoseBlob(const BlobRef&) override {}
  void FailCommits(int count) override { disk_->FailNext(count); }
  void FailWrites(int count) override { disk_->FailNext(count); }
  void LieAboutCommits(int) override {}
  bool lied() const override { return false; }
  void CutPowerAfter(uint64_t changes) override { disk_->CutAfter(static_cast<int64_t>(changes)); }
  bool power_is_off() const override { return disk_->off(); }
  int power_cuts() const override { return power_cuts_; }

  absl::Status Reopen() override {
    if (store_ == nullptr && !disk_->off()) return Open();
    const std::string before = Folder();
    const bool power_cut = disk_->off();
    ++generation_;
    if (!power_cut) {
      disk_->ProcessDied(Folder());
      Close();
    } else {
      Close();
      ++power_cuts_;
      disk_->Restore(Folder(), CounterBits(seed_, static_cast<uint64_t>(generation_)));
      disk_.reset();
      disk_.emplace(Folder());
    }
    LH_RETURN_IF_ERROR(RemoveTree(before));
    return Open();
  }

  std::vector<std::string> Problems() override {
    absl::StatusOr<storage::CheckReport> report = storage::CheckState(Folder(), {.hash_blobs = true});
    if (!report.ok()) return {std::string(report.status().message())};
    return std::move(report->problems);
  }

 private:
  // Real syncs would only cost time: what lasts is PowerCutDisk's word.
  static const char* InMemory() { return IsDirectory("/dev/shm") ? "/dev/shm" : nullptr; }
  std::string Folder() const { return JoinPath(dir_.path(), "state" + std::to_string(generation_)); }
  absl::Status Open() {
    LH_ASSIGN_OR_RETURN(store_, storage::OpenJobStore(Folder()));
    storage::BlobStore::Options options;
    options.min_free_bytes = 0;
    LH_ASSIGN_OR_RETURN(blobs_, storage::BlobStore::Open(Folder(), options));
    return absl::OkStatus();
  }
  void Close() {
    store_.reset();
    blobs_.reset();
  }

  const uint64_t seed_;
  TempDir dir_{InMemory()};
  int generation_ = 0;  // of the folder: each death of the process begins another
  int power_cuts_ = 0;
  std::optional<PowerCutDisk> disk_;
  std::unique_ptr<server::Store> store_;
  std::unique_ptr<storage::BlobStore> blobs_;
};

}  // namespace

std::unique_ptr<Backend> MakeMemoryBackend() { return std::make_unique<MemoryBackend>(); }
std::unique_ptr<Backend> MakeDiskBackend(uint64_t seed) { return std::make_unique<DiskBackend>(seed); }

}  // namespace longhaul::simulation
