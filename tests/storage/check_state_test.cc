// Every kind of damage that CheckState knows of is done to a whole folder, and named.
#include "storage/check_state.h"

#include <filesystem>
#include <fstream>

#include "base/env.h"
#include "base/error.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "storage/sqlite_db.h"
#include "tests/storage/kept_folder.h"
#include "tests/storage/temp_dir.h"

namespace longhaul::storage {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class CheckStateTest : public ::testing::Test {
 protected:
  void SetUp() override { MakeKeptFolder(folder_); }
  void Exec(const char* sql) {
    auto db = Db::Open(JoinPath(folder_, "state.db"), Db::Mode::kReadWrite);
    ASSERT_TRUE(db.ok()) << db.status();
    const absl::Status status = (*db)->Exec(sql);
    ASSERT_TRUE(status.ok()) << status;
  }
  std::vector<std::string> Problems(bool hash_blobs = false) {
    const auto report = CheckState(folder_, {hash_blobs});
    EXPECT_TRUE(report.ok()) << report.status();
    if (!report.ok()) return {};
    EXPECT_EQ(report->problems_total, static_cast<int64_t>(report->problems.size()));
    return report->problems;
  }
  std::string BlobPath(const std::string& content) {
    const std::string sha256 = Sha256Hex(content);
    return folder_ + "/blobs/" + sha256.substr(0, 2) + "/" + sha256;
  }

  TempDir dir_;
  const std::string folder_ = JoinPath(dir_.path(), "state");
};

TEST_F(CheckStateTest, AWholeFolderIsInOrder) {
  PutBlobFile(folder_, "a file whose row a crash has lost");
  const auto report = CheckState(folder_, {.hash_blobs = true});
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_THAT(report->problems, IsEmpty());
  EXPECT_EQ(report->jobs, 12);
  EXPECT_EQ(report->events, 36);
  EXPECT_EQ(report->blobs, static_cast<int64_t>(MakeKeptState().contents.size()));
  EXPECT_EQ(report->unrecorded_blobs, 1);
}

TEST_F(CheckStateTest, AlsoWhileASchedulerHasIt) {
  const auto store = OpenJobStore(folder_);
  ASSERT_TRUE(store.ok());
  const auto tx = (*store)->Begin();
  ASSERT_TRUE((*tx)->DeleteJob("ftjob-kept10", 0).ok());  // not committed
  EXPECT_THAT(Problems(), IsEmpty());
}

TEST_F(CheckStateTest, ColumnsAndBodies) {
  Exec("UPDATE jobs SET state=2 WHERE id='ftjob-kept10'; UPDATE jobs SET body=x'ff' WHERE id='ftjob-kept3'");
  EXPECT_THAT(Problems(), Contains(HasSubstr("ftjob-kept10: its columns do not agree")));
  EXPECT_THAT(Problems(), Contains(HasSubstr("job ftjob-kept3: ")));
}

TEST_F(CheckStateTest, Events) {
  Exec("DELETE FROM events WHERE job_id='ftjob-kept4' AND sequence=2");
  EXPECT_THAT(Problems(), ElementsAre(HasSubstr("ftjob-kept4: its events have gaps")));
  Exec("DELETE FROM events WHERE job_id='ftjob-kept5' AND sequence=3");
  EXPECT_THAT(Problems(), Contains(HasSubstr("ftjob-kept5: its last event is 2, the job says 3")));
  EXPECT_THAT(Problems(), Contains(HasSubstr("ftjob-kept5 is PAUSING, its last event says VALIDATING")));
}

TEST_F(CheckStateTest, AttemptsAndCheckpoints) {
  Exec(
      "DELETE FROM attempts WHERE job_id='ftjob-kept4'; "
      "DELETE FROM checkpoints WHERE job_id='ftjob-kept6' AND step=20");
  EXPECT_THAT(Problems(), Contains(HasSubstr("ftjob-kept4: attempt 1 has no row")));
  EXPECT_THAT(Problems(), Contains(HasSubstr("ftjob-kept6: its last checkpoint has no row")));
  EXPECT_THAT(Problems(), Contains(HasSubstr("ftjob-kept6: its references to blobs")));
}

TEST_F(CheckStateTest, ReferencesAndTotals) {
  // The count first: a reference that goes takes its one from the count, by a trigger.
  Exec(
      "UPDATE blobs SET refs=refs+1 WHERE refs=0; DELETE FROM blob_refs WHERE job_id='ftjob-kept10' AND source=-1; "
      "UPDATE totals SET value=value+1");
  EXPECT_THAT(Problems(), ElementsAre(HasSubstr("total of blob bytes"), HasSubstr("ftjob-kept10: its references"),
                                      HasSubstr("is counted 1 times and referred to 0 times")));
}

TEST_F(CheckStateTest, ForeignRowsAndLabels) {
  Exec(
      "PRAGMA foreign_keys=OFF; INSERT INTO events(job_id, sequence, body) VALUES('ftjob-nobody', 1, x''); "
      "DELETE FROM job_labels WHERE job_id='ftjob-kept1' AND key='team'");
  EXPECT_THAT(Problems(),
              ElementsAre(HasSubstr("a row of events refers to a row of jobs"), HasSubstr("ftjob-kept1: its labels")));
}

// List would miss the job, or show it among those of another state.
TEST_F(CheckStateTest, LabelsFollowTheStateInWhichAJobEnded) {
  Exec(
      "UPDATE job_labels SET end_state=11 WHERE job_id='ftjob-kept2' AND key='team'; "
      "UPDATE job_labels SET end_state=NULL WHERE job_id='ftjob-kept10' AND key='team'; "
      "UPDATE job_labels SET end_state=10 WHERE job_id='ftjob-kept11' AND key='team'");
  EXPECT_THAT(Problems(), ElementsAre(HasSubstr("ftjob-kept2: its labels"), HasSubstr("ftjob-kept10: its labels"),
                                      HasSubstr("ftjob-kept11: its labels")));
}

TEST_F(CheckStateTest, LabelsHaveTheModelOfTheirJob) {
  Exec("UPDATE job_labels SET model='' WHERE job_id='ftjob-kept2' AND key='team'");
  EXPECT_THAT(Problems(), ElementsAre(HasSubstr("ftjob-kept2: its labels")));
}

TEST_F(CheckStateTest, BlobsGoneCutAndChanged) {
  ASSERT_TRUE(RemoveFile(BlobPath("card")).ok());
  std::filesystem::resize_file(BlobPath("artifact"), 3);
  std::ofstream(BlobPath("optimizer shared"), std::ios::in) << "O";
  EXPECT_THAT(Problems(),
              ::testing::UnorderedElementsAre(HasSubstr(Sha256Hex("card") + " of 4 bytes is not on the disk"),
                                              HasSubstr(Sha256Hex("artifact"))));
  EXPECT_THAT(Problems(true), Contains(HasSubstr(Sha256Hex("optimizer shared") + " has other bytes")));
}

TEST_F(CheckStateTest, ABrokenPageIsAFindingNotACrash) {
  const std::string path = JoinPath(folder_, "state.db");
  const int64_t pages = *FileSize(path) / 4096;
  int found = 0;
  for (int64_t page = 1; page < pages; ++page) {
    const std::string original = *ReadFileRange(path, page * 4096, 64);
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(page * 4096);
    file << std::string(64, '\xa5');
    file.flush();
    const auto report = CheckState(folder_, {});
    found += !report.ok() || report->problems_total > 0;
    file.seekp(page * 4096);
    file << original;
  }
  EXPECT_GE(found, pages - 3) << "of " << pages - 1 << " pages; a free page may say nothing";
  EXPECT_THAT(Problems(), IsEmpty());
}

TEST_F(CheckStateTest, WhatIsNoStateFolder) {
  EXPECT_EQ(ErrorReason(CheckState(dir_.path(), {}).status()), "NO_DATABASE");
  EXPECT_FALSE(IsDirectory(JoinPath(dir_.path(), "blobs"))) << "a check makes nothing";
  Exec("PRAGMA user_version=1");
  EXPECT_EQ(ErrorReason(CheckState(folder_, {}).status()), "SCHEMA_TOO_OLD");
  Exec("PRAGMA user_version=99");
  EXPECT_EQ(ErrorReason(CheckState(folder_, {}).status()), "SCHEMA_TOO_NEW");
}

}  // namespace
}  // namespace longhaul::storage
