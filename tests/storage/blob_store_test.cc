#include "storage/blob_store.h"

#include <cerrno>
#include <thread>

#include "base/disk_seam.h"
#include "base/env.h"
#include "base/error.h"
#include "base/failpoints.h"
#include "base/hash.h"
#include "base/limits.h"
#include "gtest/gtest.h"
#include "tests/storage/temp_dir.h"

namespace longhaul::storage {
namespace {

BlobRef NameOf(const std::string& content) { return {Sha256Hex(content), static_cast<int64_t>(content.size())}; }

class BlobStoreTest : public ::testing::Test {
 protected:
  void SetUp() override { Open(); }
  void TearDown() override { DisarmFailpoints(); }
  void Open() {
    BlobStore::Options options;
    options.min_free_bytes = 1000;
    options.max_blob_bytes = 1 << 20;
    options.free_bytes = [this](const std::string&) -> absl::StatusOr<int64_t> { return free_bytes_; };
    options.disk_bytes = [](const std::string&) -> absl::StatusOr<int64_t> { return 100'000; };
    auto blobs = BlobStore::Open(dir_.path(), options);
    ASSERT_TRUE(blobs.ok()) << blobs.status();
    blobs_ = *std::move(blobs);
  }
  absl::Status Put(const std::string& content) {
    auto upload = blobs_->BeginUpload(NameOf(content));
    if (!upload.ok()) return upload.status();
    if (absl::Status status = (*upload)->Append(0, content); !status.ok()) return status;
    return (*upload)->Finish();
  }
  size_t PartialFiles() { return ListDir(JoinPath(dir_.path(), "uploads"))->size(); }

  TempDir dir_;
  int64_t free_bytes_ = int64_t{1} << 40;
  std::unique_ptr<BlobStore> blobs_;
};

TEST_F(BlobStoreTest, WrittenVerifiedRead) {
  const std::string content = "some bytes\nof a dataset";
  EXPECT_FALSE(*blobs_->Present(NameOf(content)));
  ASSERT_TRUE(Put(content).ok());
  EXPECT_TRUE(*blobs_->Present(NameOf(content)));
  EXPECT_FALSE(*blobs_->Present({NameOf(content).sha256, 5})) << "another size is another name";
  EXPECT_EQ(*blobs_->Read(NameOf(content), 5, 5), "bytes");
  EXPECT_EQ(*blobs_->Read({NameOf(content).sha256, 0}, 20, 100), "set");
  EXPECT_EQ(*blobs_->Read(NameOf(content), static_cast<int64_t>(content.size()), 10), "");
  EXPECT_EQ(blobs_->Read(NameOf(content), 1000, 1).status().code(), absl::StatusCode::kOutOfRange);
  EXPECT_EQ(PartialFiles(), 0u);
  // In its place, and nowhere else.
  const std::string sha256 = NameOf(content).sha256;
  EXPECT_TRUE(FileExists(dir_.path() + "/blobs/" + sha256.substr(0, 2) + "/" + sha256));
  EXPECT_EQ(blobs_->List(sha256.substr(0, 2))->at(0).sha256, sha256);
  ASSERT_TRUE(Put(content).ok()) << "again changes nothing";
  ASSERT_TRUE(blobs_->Remove(NameOf(content)).ok());
  EXPECT_FALSE(*blobs_->Present(NameOf(content)));
  EXPECT_EQ(ErrorReason(blobs_->Read(NameOf(content), 0, 1).status()), "BLOB_NOT_FOUND");
}

TEST_F(BlobStoreTest, ResumesWhereItStoppedAlsoAfterReopening) {
  const std::string content(50'000, 'q');
  {
    auto upload = blobs_->BeginUpload(NameOf(content));
    ASSERT_TRUE(upload.ok());
    ASSERT_TRUE((*upload)->Append(0, content.substr(0, 20'000)).ok());
  }
  Open();
  auto status = blobs_->QueryWriteStatus(NameOf(content));
  ASSERT_TRUE(status.ok());
  EXPECT_EQ(status->committed_bytes, 20'000);
  EXPECT_FALSE(status->complete);
  auto upload = blobs_->BeginUpload(NameOf(content));
  ASSERT_TRUE(upload.ok());
  EXPECT_EQ((*upload)->committed_bytes(), 20'000);
  EXPECT_EQ(ErrorReason((*upload)->Append(30'000, "x")), "BLOB_OFFSET");
  ASSERT_TRUE((*upload)->Append(10'000, content.substr(10'000, 20'000)).ok()) << "overlap is skipped";
  EXPECT_EQ((*upload)->committed_bytes(), 30'000);
  EXPECT_EQ(ErrorReason((*upload)->Finish()), "BLOB_SIZE_MISMATCH");
  ASSERT_TRUE((*upload)->Append(30'000, content.substr(30'000)).ok());
  ASSERT_TRUE((*upload)->Finish().ok());
  ASSERT_TRUE((*upload)->Finish().ok());
  status = blobs_->QueryWriteStatus(NameOf(content));
  EXPECT_TRUE(status->complete);
  EXPECT_EQ(*blobs_->Read(NameOf(content), 0, 100'000), content);
}

TEST_F(BlobStoreTest, WrongBytesAreNeverStored) {
  BlobRef name = NameOf("right");
  auto upload = blobs_->BeginUpload(name);
  ASSERT_TRUE((*upload)->Append(0, "wrong").ok());
  const absl::Status status = (*upload)->Finish();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ErrorReason(status), "BLOB_HASH_MISMATCH");
  EXPECT_FALSE((*upload)->Append(0, "right").ok());
  EXPECT_FALSE((*upload)->Finish().ok());
  EXPECT_EQ((*upload)->committed_bytes(), 0);
  EXPECT_FALSE(*blobs_->Present(name));
  EXPECT_EQ(PartialFiles(), 0u);
  // The same uploader may begin again at once, the refused one still being alive.
  ASSERT_TRUE(Put("right").ok());
  upload->reset();
  EXPECT_TRUE(*blobs_->Present(name));

  upload = blobs_->BeginUpload(NameOf("short"));
  EXPECT_EQ(ErrorReason((*upload)->Append(0, "longer than told")), "BLOB_SIZE_MISMATCH");
}

// A crash may leave a partial file of the right length with other bytes: the client is told to begin again.
TEST_F(BlobStoreTest, APartThatACrashHasSpoiltIsTakenBack) {
  const std::string content(5'000, 's');
  {
    auto upload = blobs_->BeginUpload(NameOf(content));
    ASSERT_TRUE((*upload)->Append(0, std::string(2'000, '\0')).ok());
  }
  {
    auto upload = blobs_->BeginUpload(NameOf(content));
    ASSERT_TRUE((*upload)->Append(2'000, content.substr(2'000)).ok());
    const absl::Status status = (*upload)->Finish();
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << "not the client's fault";
    EXPECT_EQ(ErrorReason(status), "BLOB_HASH_MISMATCH");
  }
  EXPECT_EQ(blobs_->QueryWriteStatus(NameOf(content))->committed_bytes, 0);
  EXPECT_TRUE(Put(content).ok());
}

// Fails every sync of a folder.
class NoFolderSync final : public DiskSeam {
 public:
  NoFolderSync() { InstallDiskSeam(this); }
  ~NoFolderSync() override { InstallDiskSeam(nullptr); }
  int Before(const DiskChange& change) override { return change.kind == DiskChange::Kind::kSyncDir ? EIO : 0; }
};

TEST_F(BlobStoreTest, NobodyIsToldOfABlobWhoseNameMayNotLast) {
  ASSERT_TRUE(Put("first").ok());
  {
    auto upload = blobs_->BeginUpload(NameOf("content"));
    ASSERT_TRUE((*upload)->Append(0, "content").ok());
    ASSERT_TRUE(CreateDirs(dir_.path() + "/blobs/" + NameOf("content").sha256.substr(0, 2)).ok());
    const NoFolderSync fails;
    EXPECT_FALSE((*upload)->Finish().ok());
    EXPECT_FALSE(blobs_->Present(NameOf("content")).ok());
    EXPECT_TRUE(*blobs_->Present(NameOf("first"))) << "the others are not touched";
  }
  EXPECT_TRUE(*blobs_->Present(NameOf("content"))) << "once its folder is synced it is there";
  EXPECT_TRUE(Put("content").ok());
}

TEST_F(BlobStoreTest, NamesNeverLeaveTheFolder) {
  const std::string good = Sha256Hex("x");
  for (const std::string& bad :
       {std::string("../../etc/passwd"), std::string(64, '.'), std::string(64, '/'), std::string(""), good.substr(1),
        good + "0", "../" + good.substr(3), std::string(64, 'A'), good.substr(0, 63) + '\0'}) {
    EXPECT_EQ(ErrorReason(blobs_->BeginUpload({bad, 5}).status()), "BLOB_NAME") << bad;
    EXPECT_EQ(ErrorReason(blobs_->Read({bad, 0}, 0, 5).status()), "BLOB_NAME") << bad;
    EXPECT_EQ(ErrorReason(blobs_->Remove({bad, 5})), "BLOB_NAME") << bad;
    EXPECT_FALSE(blobs_->Present({bad, 5}).ok()) << bad;
    EXPECT_FALSE(blobs_->QueryWriteStatus({bad, 5}).ok()) << bad;
  }
  for (const int64_t size : {int64_t{-1}, int64_t{0}, (int64_t{1} << 20) + 1, INT64_MAX, INT64_MIN}) {
    EXPECT_EQ(ErrorReason(blobs_->BeginUpload({good, size}).status()), "BLOB_NAME") << size;
  }
  for (const std::string bad : {"..", "a", "abc", "zz", "./"}) {
    EXPECT_FALSE(blobs_->List(bad).ok()) << bad;
  }
}

TEST_F(BlobStoreTest, AFullDiskRefusesAndRecovers) {
  const std::string content(5000, 'z');
  free_bytes_ = 5500;  // 1000 must stay
  EXPECT_EQ(ErrorReason(Put(content)), "DISK_FULL");
  free_bytes_ = 1 << 20;
  auto upload = blobs_->BeginUpload(NameOf(content));
  ASSERT_TRUE((*upload)->Append(0, content.substr(0, 2000)).ok());
  free_bytes_ = 3000;  // somebody else filled it
  const absl::Status full = (*upload)->Append(2000, content.substr(2000));
  EXPECT_EQ(full.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(ErrorReason(full), "DISK_FULL");
  free_bytes_ = 1 << 20;
  ASSERT_TRUE((*upload)->Append(2000, content.substr(2000)).ok());
  ASSERT_TRUE((*upload)->Finish().ok());
  EXPECT_TRUE(*blobs_->Present(NameOf(content)));
}

TEST_F(BlobStoreTest, AClientLeavesRoomForTheJobsThatRun) {
  const std::string content(5000, 'z');
  free_bytes_ = 10'999;  // 1000 and a twentieth of the disk must stay
  const BlobStore::UploadOptions kClient{"", BlobStore::Uploader::kClient, {}, nullptr};
  const auto client = blobs_->BeginUpload(NameOf(content), kClient);
  EXPECT_EQ(ErrorReason(client.status()), "DISK_FULL") << client.status();
  EXPECT_TRUE(Put(content).ok()) << "a worker's checkpoint has room";
  free_bytes_ = 11'000;
  const std::string other(5000, 'y');
  auto upload = blobs_->BeginUpload(NameOf(other), kClient);
  ASSERT_TRUE(upload.ok()) << upload.status();
  free_bytes_ = 10'999;  // somebody else came first
  EXPECT_EQ(ErrorReason((*upload)->Append(0, other)), "DISK_FULL");
}

TEST_F(BlobStoreTest, AFailureBeforeTheRenameLeavesNoBlob) {
  ArmFailpoint("blob_before_rename", "error");
  auto upload = blobs_->BeginUpload(NameOf("content"));
  ASSERT_TRUE((*upload)->Append(0, "content").ok());
  EXPECT_FALSE((*upload)->Finish().ok());
  EXPECT_FALSE(*blobs_->Present(NameOf("content")));
  DisarmFailpoints();
  ASSERT_TRUE((*upload)->Finish().ok()) << "and can be finished later";
  EXPECT_TRUE(*blobs_->Present(NameOf("content")));
}

TEST_F(BlobStoreTest, OneUploadOfABlobAtATime) {
  auto first = blobs_->BeginUpload(NameOf("content"));
  ASSERT_TRUE(first.ok());
  const auto second = blobs_->BeginUpload(NameOf("content"));
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(ErrorReason(second.status()), "BLOB_BUSY");
  first->reset();
  EXPECT_TRUE(Put("content").ok());
}

TEST_F(BlobStoreTest, ManyThreadsOneBlob) {
  const std::string content(30'000, 'm');
  std::vector<std::thread> threads;
  std::atomic<int> stored = 0;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&] {
      absl::Status status;
      do status = Put(content);
      while (ErrorReason(status) == "BLOB_BUSY");
      stored += status.ok();
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(stored, 8);
  EXPECT_EQ(*blobs_->Read(NameOf(content), 0, 1 << 20), content);
}

TEST_F(BlobStoreTest, UnfinishedUploadsOfASpaceHaveABound) {
  const auto begin = [&](const std::string& content, const std::string& space, int64_t files, int64_t bytes) {
    return blobs_->BeginUpload(NameOf(content), {space, BlobStore::Uploader::kClient, {files, bytes}, nullptr});
  };
  const auto leave = [&](const std::string& content, int64_t files, int64_t bytes) {
    const auto upload = begin(content, "ab", files, bytes);
    if (!upload.ok()) return ErrorReason(upload.status());
    EXPECT_TRUE((*upload)->Append(0, content.substr(0, 1)).ok());
    return std::string();
  };
  EXPECT_EQ(leave("first", 2, 100), "");
  EXPECT_EQ(leave("second", 2, 100), "");
  EXPECT_EQ(leave("third", 2, 100), "TOO_MANY_UPLOADS");
  EXPECT_EQ(leave("second", 2, 100), "") << "is there already";
  EXPECT_EQ(leave("third", 3, 6), "TOO_MANY_UPLOADS") << "two bytes there and five to come";
  EXPECT_EQ(leave("third", 3, 7), "");
  EXPECT_TRUE(begin("fourth", "cd", 1, 6).ok()) << "another space";
  EXPECT_TRUE(blobs_->BeginUpload(NameOf("fifth")).ok());
  // As they are after a restart, and until a day has passed or they are finished.
  Open();
  EXPECT_EQ(leave("fourth", 3, 100), "TOO_MANY_UPLOADS");
  EXPECT_EQ(leave("fourth", 4, 8), "TOO_MANY_UPLOADS");
  {
    const auto upload = begin("third", "ab", 3, 100);
    ASSERT_TRUE((*upload)->Append(1, "hird").ok());
    ASSERT_TRUE((*upload)->Finish().ok());
  }
  EXPECT_EQ(leave("fourth", 3, 8), "") << "what is finished counts no more";
  EXPECT_EQ(leave("sixth", 3, 100), "TOO_MANY_UPLOADS");
  ASSERT_GT(*blobs_->CollectUploads(int64_t{1} << 60), 0);
  EXPECT_EQ(leave("sixth", 1, 5), "");
  // While one is under way it counts with what it is said to get.
  const auto whole = begin("seventh", "ef", 9, 10);
  ASSERT_TRUE(whole.ok());
  EXPECT_EQ(ErrorReason(begin("eight", "ef", 9, 11).status()), "TOO_MANY_UPLOADS");
}

TEST_F(BlobStoreTest, WhoResumesIsToldThatItMoves) {
  const std::string content(3 * limits::kBlobChunkBytes / 2, 'r');
  BlobStore::Options options;
  blobs_ = *BlobStore::Open(dir_.path(), options);
  {
    const auto upload = blobs_->BeginUpload(NameOf(content));
    ASSERT_TRUE((*upload)->Append(0, content).ok());
  }
  int moved = 0;
  const auto upload =
      blobs_->BeginUpload(NameOf(content), {"", BlobStore::Uploader::kWorker, {}, [&moved] { ++moved; }});
  EXPECT_EQ(moved, 2) << "two pieces are read anew";
  EXPECT_TRUE((*upload)->Finish().ok());
}

TEST_F(BlobStoreTest, StaleUploadsAreCollected) {
  auto abandoned = blobs_->BeginUpload(NameOf("abandoned"));
  ASSERT_TRUE((*abandoned)->Append(0, "aban").ok());
  constexpr int64_t kFarFuture = int64_t{1} << 60;
  EXPECT_EQ(*blobs_->CollectUploads(kFarFuture), 0) << "it is being written";
  abandoned->reset();
  EXPECT_EQ(*blobs_->CollectUploads(1), 0) << "it is younger";
  EXPECT_EQ(*blobs_->CollectUploads(kFarFuture), 1);
  EXPECT_EQ(PartialFiles(), 0u);
}

}  // namespace
}  // namespace longhaul::storage
