#include "worker/agent/transfers.h"

#include <gtest/gtest.h>

#include "base/env.h"
#include "base/error.h"
#include "tests/worker/agent/fake_scheduler.h"
#include "tests/worker/attempt/temp_dir.h"

namespace longhaul::agent {
namespace {

class TransfersTest : public ::testing::Test {
 protected:
  v1::AttemptSpec Spec(const std::string& dataset) {
    v1::AttemptSpec spec;
    const v1::BlobName blob = scheduler_.AddBlob(dataset);
    spec.mutable_spec()->mutable_dataset()->set_sha256(blob.sha256());
    spec.mutable_spec()->mutable_dataset()->set_size_bytes(blob.size_bytes());
    return spec;
  }
  absl::Status Fetch(const v1::AttemptSpec& spec) { return FetchInputs(&scheduler_, dir_, spec, cancelled_); }

  TempDir temp_;
  FakeScheduler scheduler_;
  attempt::AttemptDir dir_{temp_.At("a")};
  CancelFlag cancelled_ = MakeCancelFlag();
};

TEST_F(TransfersTest, ContinuesAPartialFile) {
  const v1::AttemptSpec spec = Spec("0123456789");
  ASSERT_TRUE(dir_.Create().ok());
  ASSERT_TRUE(WriteFileAtomic(dir_.DatasetPath() + ".part", "0123").ok());
  ASSERT_TRUE(Fetch(spec).ok());
  EXPECT_EQ(*ReadFile(dir_.DatasetPath(), 100), "0123456789");
  EXPECT_FALSE(FileExists(dir_.DatasetPath() + ".part"));
}

// As a host that crashed leaves it: other bytes, or more than there are.
TEST_F(TransfersTest, ATornPartIsDroppedAndTheFetchBeginsAgain) {
  const v1::AttemptSpec spec = Spec("0123456789");
  ASSERT_TRUE(dir_.Create().ok());
  for (const std::string& torn : {std::string("xxxx"), std::string(4, '\0'), std::string(20, 'x')}) {
    ASSERT_TRUE(RemoveFile(dir_.DatasetPath()).ok());
    ASSERT_TRUE(WriteFileAtomic(dir_.DatasetPath() + ".part", torn).ok());
    const absl::Status fetched = Fetch(spec);
    ASSERT_TRUE(fetched.ok()) << fetched;
    EXPECT_EQ(*ReadFile(dir_.DatasetPath(), 100), "0123456789");
  }
}

TEST_F(TransfersTest, AWrongFileIsFetchedAgainAndARightOneIsNot) {
  const v1::AttemptSpec spec = Spec("0123456789");
  ASSERT_TRUE(dir_.Create().ok());
  ASSERT_TRUE(WriteFileAtomic(dir_.DatasetPath(), "another").ok());
  ASSERT_TRUE(Fetch(spec).ok());
  EXPECT_EQ(*ReadFile(dir_.DatasetPath(), 100), "0123456789");
  scheduler_.set_down(true);
  EXPECT_TRUE(Fetch(spec).ok());
}

TEST_F(TransfersTest, MoreBytesThanNamedAreRefused) {
  v1::AttemptSpec spec = Spec("0123456789");
  spec.mutable_spec()->mutable_dataset()->set_size_bytes(4);
  EXPECT_EQ(ErrorReason(Fetch(spec)), "BLOB_CORRUPT");
}

TEST_F(TransfersTest, HostileNamesTouchNothing) {
  v1::AttemptSpec spec = Spec("x");
  v1::BlobFile* file = spec.mutable_resume_from()->add_files();
  *file->mutable_sha256() = spec.spec().dataset().sha256();
  for (const char* name : {"../escape", "a/b", "", ".."}) {
    file->set_path(name);
    EXPECT_EQ(ErrorReason(Fetch(spec)), "FILE_NAME") << name;
  }
  EXPECT_FALSE(FileExists(dir_.InputsDir() + "/escape"));
  file->set_path("good");
  file->set_sha256("../../x");
  EXPECT_EQ(ErrorReason(Fetch(spec)), "BLOB_CORRUPT");
  EXPECT_EQ(ErrorReason(UploadFiles(&scheduler_, temp_.path(), {"../a"}, cancelled_).status()), "FILE_NAME");
  EXPECT_FALSE(UploadFiles(&scheduler_, temp_.path(), {}, cancelled_).ok());
}

TEST_F(TransfersTest, CancelledTransfersEnd) {
  const v1::AttemptSpec spec = Spec("0123456789");
  cancelled_->store(true);
  EXPECT_EQ(Fetch(spec).code(), absl::StatusCode::kCancelled);
}

TEST_F(TransfersTest, UploadsOnlyWhatIsMissing) {
  ASSERT_TRUE(WriteFileAtomic(temp_.At("one"), "1").ok());
  ASSERT_TRUE(WriteFileAtomic(temp_.At("two"), "2").ok());
  scheduler_.AddBlob("1");
  const auto files = UploadFiles(&scheduler_, temp_.path(), {"one", "two"}, cancelled_);
  ASSERT_TRUE(files.ok()) << files.status();
  EXPECT_EQ(scheduler_.writes(), 1);
  EXPECT_EQ(files->at(1).path(), "two");
  EXPECT_EQ(files->at(1).size_bytes(), 1);
  EXPECT_EQ(scheduler_.Blob(files->at(1).sha256()), "2");
  EXPECT_EQ(UploadFiles(&scheduler_, temp_.path(), {"absent"}, cancelled_).status().code(),
            absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace longhaul::agent
