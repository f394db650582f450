#include "worker/attempt/attempt_dir.h"

#include <gtest/gtest.h>

#include "base/env.h"
#include "base/error.h"
#include "base/limits.h"
#include "google/protobuf/util/message_differencer.h"
#include "tests/worker/attempt/temp_dir.h"

namespace longhaul::attempt {
namespace {

using google::protobuf::util::MessageDifferencer;

TEST(AttemptDirTest, SpecRoundTripsWithHostileStrings) {
  TempDir temp;
  const AttemptDir dir(temp.At("a"));
  ASSERT_TRUE(dir.Create().ok());
  v1::AttemptSpec spec;
  spec.set_job_id("ftjob-\"quoted\"\n\\");
  spec.set_attempt(3);
  spec.set_lease_epoch(int64_t{1} << 40);
  spec.set_kind(v1::ATTEMPT_KIND_TRAIN);
  spec.mutable_spec()->mutable_hyperparameters()->set_lora_rank(0);
  spec.mutable_spec()->mutable_hyperparameters()->set_learning_rate(0.1 + 0.2);
  spec.set_memory_plan_json("{\"a\": [1, 2]}");
  ASSERT_TRUE(dir.WriteSpec(spec).ok());
  const auto read = dir.ReadSpec();
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_TRUE(MessageDifferencer::Equals(spec, *read));
  EXPECT_TRUE(read->spec().hyperparameters().has_lora_rank());
}

TEST(AttemptDirTest, AbsentAndDamagedFilesNameThemselves) {
  TempDir temp;
  const AttemptDir dir(temp.path());
  EXPECT_EQ(dir.ReadSpec().status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(dir.ReadPid().status().code(), absl::StatusCode::kNotFound);
  ASSERT_TRUE(WriteFileAtomic(dir.SpecPath(), "job_id: \"x\"\nno_such_field: 1\n").ok());
  const absl::Status spec = dir.ReadSpec().status();
  EXPECT_EQ(spec.code(), absl::StatusCode::kDataLoss);
  EXPECT_NE(spec.message().find("spec.textproto"), absl::string_view::npos) << spec;
  EXPECT_NE(spec.message().find("line 2"), absl::string_view::npos) << spec;
  for (const char* bad : {"", "12", "12 ", "x 3\n", "-4 3\n", "0 3\n"}) {
    ASSERT_TRUE(WriteFileAtomic(dir.PidPath(), bad).ok());
    EXPECT_EQ(dir.ReadPid().status().code(), absl::StatusCode::kDataLoss) << "\"" << bad << "\"";
  }
}

TEST(AttemptDirTest, LeasePidAndNoteRoundTrip) {
  TempDir temp;
  const AttemptDir dir(temp.path());
  v1::LeaseFile lease;
  lease.set_lease_epoch(7);
  for (int64_t deadline : {int64_t{1}, int64_t{123'456'789'012'345}}) {
    lease.set_deadline_boot_nanos(deadline);
    ASSERT_TRUE(dir.WriteLease(lease).ok());
    EXPECT_EQ(dir.ReadLease()->deadline_boot_nanos(), deadline);
  }
  ASSERT_TRUE(dir.WritePid({4242, 18446744073709551615ull}).ok());
  EXPECT_EQ(dir.ReadPid()->pid, 4242);
  EXPECT_EQ(dir.ReadPid()->start_ticks, 18446744073709551615ull);
  ASSERT_TRUE(dir.WriteAgentNote({40, true, -3}).ok());
  EXPECT_EQ(dir.ReadAgentNote()->committed_step, 40);
  EXPECT_TRUE(dir.ReadAgentNote()->artifact_committed);
  EXPECT_EQ(dir.ReadAgentNote()->log_missing_bytes, -3);
  // Replaced by rename: nothing else is left behind.
  EXPECT_EQ(*ListDir(temp.path()), (std::vector<std::string>{"agent", "lease", "pid"}));
}

TEST(AttemptDirTest, TheNoteKeepsWhatTheEventsSaidAndAnOlderOneIsRead) {
  TempDir temp;
  const AttemptDir dir(temp.path());
  AgentNote note{40, false, -3, 5'000'000'000, true, true, true, 1'500, int64_t{1} << 40, int64_t{1} << 37};
  ASSERT_TRUE(dir.WriteAgentNote(note).ok());
  absl::StatusOr<AgentNote> read = dir.ReadAgentNote();
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->events_bytes, note.events_bytes);
  EXPECT_TRUE(read->started && read->held && read->finalizing && !read->artifact_committed);
  EXPECT_EQ(read->step_ms, note.step_ms);
  EXPECT_EQ(read->host_bytes_peak, note.host_bytes_peak);
  EXPECT_EQ(read->device_bytes_peak, note.device_bytes_peak);
  ASSERT_TRUE(WriteFileAtomic(dir.AgentNotePath(), "committed_step 7 artifact_committed 1 log_missing_bytes 9\n").ok());
  read = dir.ReadAgentNote();
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->committed_step, 7);
  EXPECT_TRUE(read->artifact_committed);
  EXPECT_EQ(read->events_bytes, 0);
  EXPECT_FALSE(read->started);
  for (const char* bad :
       {"", "committed_step 7", "committed_step 7 artifact_committed 1 log_missing_bytes 9 events_bytes 3"}) {
    ASSERT_TRUE(WriteFileAtomic(dir.AgentNotePath(), bad).ok());
    EXPECT_FALSE(dir.ReadAgentNote().ok()) << bad;
  }
}

TEST(AttemptDirTest, ACheckpointThatIsNotWholeShows) {
  TempDir temp;
  const AttemptDir dir(temp.path());
  EXPECT_FALSE(dir.WritesCheckpoint()) << "nor is there a folder for them";
  ASSERT_TRUE(CreateDirs(dir.CheckpointDir(3)).ok());
  EXPECT_FALSE(dir.WritesCheckpoint());
  ASSERT_TRUE(CreateDirs(dir.CheckpointDir(4) + ".partial").ok());
  EXPECT_TRUE(dir.WritesCheckpoint());
}

TEST(AttemptDirTest, FileNamesFromOutsideNeverLeaveTheFolder) {
  for (const char* good : {"adapter_model.safetensors", "state.json", "a", "README.md", "A-1_b.x"}) {
    EXPECT_TRUE(ValidateFileName(good).ok()) << good;
  }
  const std::string with_zero("a\0b", 3);
  for (const std::string& bad :
       {std::string(), std::string("."), std::string(".."), std::string("../x"), std::string("a/b"),
        std::string("/etc/passwd"), std::string(".hidden"), std::string("a b"), std::string("a\nb"), with_zero,
        std::string("caf\xc3\xa9"), std::string(limits::kMaxFileNameBytes + 1, 'a')}) {
    const absl::Status status = ValidateFileName(bad);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << bad;
    EXPECT_EQ(ErrorReason(status), "FILE_NAME");
  }
}

}  // namespace
}  // namespace longhaul::attempt
