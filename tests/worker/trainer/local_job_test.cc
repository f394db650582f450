#include "worker/trainer/local_job.h"

#include <gtest/gtest.h>

#include "base/env.h"
#include "base/error.h"
#include "tests/fakes/tiny_model.h"
#include "tests/worker/attempt/temp_dir.h"
#include "worker/attempt/attempt_dir.h"

namespace longhaul::trainer {
namespace {

class LocalJobTest : public ::testing::Test {
 protected:
  LocalJobTest() {
    WriteTinyModel(temp_.At("model"));
    std::string data;
    for (int i = 0; i < 10; ++i) data += "{\"text\": \"line " + std::to_string(i) + "\"}\n";
    EXPECT_TRUE(WriteFileAtomic(temp_.At("train.jsonl"), data).ok());
    options_.spec.mutable_hyperparameters()->set_max_steps(2);
    options_.spec.mutable_hyperparameters()->set_max_sequence_length(64);
    options_.out_dir = temp_.At("out");
    options_.model = temp_.At("model/");
    options_.dataset = temp_.At("train.jsonl");
  }
  absl::StatusOr<LocalJob> Prepare() {
    return PrepareLocalJob(options_, [](const std::string&) {});
  }
  TempDir temp_;
  LocalJobOptions options_;
};

TEST_F(LocalJobTest, MakesAnAttemptDirectoryWithAPlan) {
  const auto job = Prepare();
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_EQ(job->spec.spec().model(), "model");
  EXPECT_EQ(job->spec.spec().dataset().file_name(), "train.jsonl");
  EXPECT_TRUE(job->spec.spec().hyperparameters().has_lora_rank());
  EXPECT_FALSE(job->spec.memory_plan_json().empty());
  EXPECT_EQ(job->spec.data_report().examples(), 10);
  EXPECT_EQ(job->paths.dataset, temp_.At("train.jsonl"));
  const auto written = attempt::AttemptDir(options_.out_dir).ReadSpec();
  ASSERT_TRUE(written.ok());
  EXPECT_EQ(written->SerializeAsString(), job->spec.SerializeAsString());
  EXPECT_EQ(ErrorReason(Prepare().status()), "FOLDER_NOT_EMPTY");  // a second run into the same folder
}

TEST_F(LocalJobTest, SaysWhatIsWrong) {
  options_.host_bytes = 1 << 20;
  EXPECT_EQ(ErrorReason(Prepare().status()), "PLAN_DOES_NOT_FIT");
  options_.host_bytes = 0;
  options_.spec.mutable_hyperparameters()->set_lora_rank(0);
  EXPECT_EQ(ErrorViolations(Prepare().status()).at(0).field, "spec.hyperparameters.lora_rank");
  options_.spec.Clear();
  ASSERT_TRUE(WriteFileAtomic(temp_.At("train.jsonl"), "broken\n").ok());
  EXPECT_EQ(ErrorReason(Prepare().status()), "INVALID_DATASET");
  options_.dataset = temp_.At("absent");
  EXPECT_EQ(Prepare().status().code(), absl::StatusCode::kNotFound);
  options_.model = temp_.At("no model");
  EXPECT_NE(Prepare().status().message().find("--model"), absl::string_view::npos);
}

TEST_F(LocalJobTest, AGpuThatIsNotThereIsSaidBeforeAnythingRuns) {
  options_.device = "GPU-that-nobody-has";
  const absl::Status status = Prepare().status();
  EXPECT_EQ(ErrorReason(status), "NO_CUDA_DEVICE") << status;
  EXPECT_NE(status.message().find("--device"), absl::string_view::npos) << status;
}

}  // namespace
}  // namespace longhaul::trainer
