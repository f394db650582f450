// The whole storage under a disk that is full, read-only or broken, by the seam: reads go on, writes are refused with
// the canonical code, nothing half done is seen, and all is well again without a restart.
#include <cerrno>

#include "base/env.h"
#include "base/error.h"
#include "gtest/gtest.h"
#include "storage/blob_store.h"
#include "storage/check_state.h"
#include "storage/log_store.h"
#include "tests/fakes/broken_disk.h"
#include "tests/storage/kept_folder.h"
#include "tests/storage/temp_dir.h"

namespace longhaul::storage {
namespace {

using namespace server;  // NOLINT: the domain's values are this file's subject
using Kind = DiskChange::Kind;

class FullDiskTest : public ::testing::Test {
 protected:
  void SetUp() override {
    MakeKeptFolder(dir_.path());
    store_ = *OpenJobStore(dir_.path());
    BlobStore::Options options;
    options.min_free_bytes = 0;
    blobs_ = *BlobStore::Open(dir_.path(), options);
    logs_ = *LogStore::Open(dir_.path());
  }
  absl::Status PutKey(const std::string& request_id) {
    const auto tx = store_->Begin();
    if (!tx.ok()) return tx.status();
    // More than a page, so that the log has to grow.
    if (absl::Status status = (*tx)->PutRequestKey({"p", request_id, std::string(9'000, 'k'), "ftjob-1", 1});
        !status.ok()) {
      return status;
    }
    return (*tx)->Commit();
  }
  absl::Status PutBlob(const std::string& content) {
    auto upload = blobs_->BeginUpload({Sha256Hex(content), static_cast<int64_t>(content.size())});
    if (!upload.ok()) return upload.status();
    if (absl::Status status = (*upload)->Append((*upload)->committed_bytes(),
                                                content.substr(static_cast<size_t>((*upload)->committed_bytes())));
        !status.ok()) {
      return status;
    }
    return (*upload)->Finish();
  }
  bool HasKey(const std::string& request_id) { return (*store_->GetRequestKey("p", request_id)).has_value(); }
  void ExpectReadsGoOn() {
    EXPECT_TRUE(store_->GetJob("ftjob-kept4").ok());
    EXPECT_EQ(store_->ListJobs({})->jobs.size(), 12u);
    EXPECT_EQ(*blobs_->Read({Sha256Hex("artifact"), 8}, 0, 8), "artifact");
  }

  TempDir dir_;
  std::unique_ptr<Store> store_;
  std::unique_ptr<BlobStore> blobs_;
  std::unique_ptr<LogStore> logs_;
};

TEST_F(FullDiskTest, FullThenMended) {
  BrokenDisk disk;
  disk.Break(ENOSPC, kEveryChange);
  for (int i = 0; i < 3; ++i) {
    const absl::Status written = PutKey("refused");
    EXPECT_EQ(written.code(), absl::StatusCode::kResourceExhausted) << written;
    EXPECT_EQ(ErrorReason(written), "DISK_FULL");
    const absl::Status uploaded = PutBlob("refused");
    EXPECT_EQ(uploaded.code(), absl::StatusCode::kResourceExhausted) << uploaded;
    EXPECT_EQ(ErrorReason(uploaded), "DISK_FULL");
    EXPECT_EQ(ErrorReason(logs_->Append("ftjob-kept4", 1, 0, "line\n", false).status()), "DISK_FULL");
    ExpectReadsGoOn();
  }
  disk.Mend();
  EXPECT_FALSE(HasKey("refused"));
  EXPECT_TRUE(PutKey("taken").ok());
  EXPECT_TRUE(HasKey("taken"));
  EXPECT_TRUE(PutBlob("refused").ok());
  EXPECT_EQ(*logs_->Append("ftjob-kept4", 1, 0, "line\n", false), 5);
  ExpectReadsGoOn();
}

TEST_F(FullDiskTest, ReadOnly) {
  BrokenDisk disk;
  disk.Break(EROFS, kEveryChange);
  EXPECT_EQ(PutKey("refused").code(), absl::StatusCode::kUnavailable);
  EXPECT_FALSE(PutBlob("refused").ok());
  ExpectReadsGoOn();
  disk.Mend();
  EXPECT_TRUE(PutKey("taken").ok());
}

// The n-th write or sync of a commit fails, for every n that it has: either it was refused and nothing of it is there,
// also after a restart's recovery of the log, or it was kept.
TEST_F(FullDiskTest, ACommitThatFailsAnywhereIsNotSeen) {
  BrokenDisk disk;
  constexpr int kMost = 100;  // writes and syncs of one commit: never reached
  int refused = 0;
  int kept_in_a_row = 0;
  int after = 0;
  for (; after < kMost && kept_in_a_row < 2; ++after) {
    const std::string name = "key-" + std::to_string(after);
    disk.Break(EIO, {Kind::kWrite, Kind::kSyncFile}, after);
    const absl::Status status = PutKey(name);
    disk.Mend();
    EXPECT_EQ(HasKey(name), status.ok()) << status;
    if (!status.ok()) {
      EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
    }
    refused += !status.ok();
    kept_in_a_row = status.ok() ? kept_in_a_row + 1 : 0;
    EXPECT_TRUE(PutKey(name + "-next").ok());
    EXPECT_EQ(HasKey(name), status.ok()) << "the next commit does not bring it back";
  }
  EXPECT_GT(refused, 3);
  EXPECT_LT(after, kMost);
  store_.reset();
  const auto report = CheckState(dir_.path(), {.hash_blobs = true});
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->problems_total, 0) << report->problems[0];
}

TEST_F(FullDiskTest, AnUploadThatFailsAnywhereCanBeResumed) {
  BrokenDisk disk;
  for (int after = 0; after < 8; ++after) {
    const std::string content = "content " + std::to_string(after) + std::string(5'000, '+');
    disk.Break(EIO, kEveryChange, after);
    const absl::Status status = PutBlob(content);
    disk.Mend();
    const BlobRef blob{Sha256Hex(content), static_cast<int64_t>(content.size())};
    if (status.ok()) {
      EXPECT_TRUE(*blobs_->Present(blob));
    }
    EXPECT_TRUE(PutBlob(content).ok());
    EXPECT_EQ(*blobs_->Read(blob, 0, 10'000), content);
  }
  EXPECT_TRUE(ListDir(JoinPath(dir_.path(), "uploads"))->empty());
}

}  // namespace
}  // namespace longhaul::storage
