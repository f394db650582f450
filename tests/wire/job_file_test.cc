#include "wire/job_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "base/error.h"

namespace longhaul::wire {
namespace {

using ::testing::HasSubstr;

class JobFileTest : public ::testing::Test {
 protected:
  JobFileTest() : dir_(std::filesystem::temp_directory_path() / ("longhaul_job_file_" + std::to_string(getpid()))) {
    std::filesystem::create_directories(dir_);
  }
  ~JobFileTest() override { std::filesystem::remove_all(dir_); }

  absl::StatusOr<v1::CreateFineTuneJobRequest> Parse(const std::string& text) {
    const std::string path = (dir_ / "job.yaml").string();
    std::ofstream(path) << text;
    const auto root = ReadJobFile(path);
    if (!root.ok()) return root.status();
    return JobRequestFromYaml(*root, "job.yaml");
  }

  std::string Error(const std::string& text) {
    const auto request = Parse(text);
    EXPECT_FALSE(request.ok()) << text;
    EXPECT_EQ(request.status().code(), absl::StatusCode::kInvalidArgument);
    return std::string(request.status().message());
  }

  std::filesystem::path dir_;
};

TEST_F(JobFileTest, EveryKindOfField) {
  const auto request = Parse(R"(
suffix: glosses
labels: {team: words, run: 7}
spec:
  model: SmolLM2
  dataset: {file_name: train.jsonl, format: messages}
  priority: HIGH
  deadline_seconds: 3600
  hyperparameters:
    lora_rank: 0
    learning_rate: 5e-4
    schedule: cosine
    base_storage: BASE_STORAGE_AS_STORED
    packing: false
    seed: 18446744073709551615
    target_modules: [q_proj, v_proj]
    max_steps: null
)");
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_EQ(request->suffix(), "glosses");
  EXPECT_EQ(request->labels().at("run"), "7");
  EXPECT_EQ(request->spec().dataset().file_name(), (dir_ / "train.jsonl").string());
  EXPECT_EQ(request->spec().dataset().format(), v1::DATASET_FORMAT_MESSAGES);
  EXPECT_EQ(request->spec().priority(), v1::PRIORITY_CLASS_HIGH);
  const v1::Hyperparameters& hyper = request->spec().hyperparameters();
  EXPECT_TRUE(hyper.has_lora_rank());
  EXPECT_EQ(hyper.lora_rank(), 0);
  EXPECT_DOUBLE_EQ(hyper.learning_rate(), 5e-4);
  EXPECT_EQ(hyper.schedule(), v1::LEARNING_RATE_SCHEDULE_COSINE);
  EXPECT_EQ(hyper.base_storage(), v1::BASE_STORAGE_AS_STORED);
  EXPECT_TRUE(hyper.has_packing());
  EXPECT_FALSE(hyper.packing());
  EXPECT_EQ(hyper.seed(), 18446744073709551615u);
  EXPECT_EQ(hyper.target_modules_size(), 2);
  EXPECT_FALSE(hyper.has_max_steps());
}

TEST_F(JobFileTest, SpecFieldsMayStandAtTheTopAndKeysMayBeProtoJson) {
  const auto request = Parse(R"({"model": "m", "suffix": "s", "hyperparameters": {"maxSteps": "60"}})");
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_EQ(request->spec().model(), "m");
  EXPECT_EQ(request->suffix(), "s");
  EXPECT_EQ(request->spec().hyperparameters().max_steps(), 60);
}

TEST_F(JobFileTest, UnknownKeyNamesPathLineAndNearest) {
  const std::string error = Error("spec:\n  hyperparameters:\n    lora_rnak: 8\n");
  EXPECT_THAT(error, HasSubstr("job.yaml:3"));
  EXPECT_THAT(error, HasSubstr("spec.hyperparameters.lora_rnak"));
  EXPECT_THAT(error, HasSubstr("did you mean lora_rank?"));
  EXPECT_THAT(Error("spec: {dataset: {zzzzzzzzzz: 1}}"), HasSubstr("known are sha256, size_bytes, format, file_name"));
}

TEST_F(JobFileTest, EveryFaultIsListed) {
  const auto request = Parse(R"(
spec:
  model: [a]
  hyperparameters: {lora_rank: 1.5, learning_rate: fast, schedule: spiral, packing: maybe, target_modules: q_proj}
)");
  std::vector<std::string> fields;
  for (const FieldViolation& violation : ErrorViolations(request.status())) fields.push_back(violation.field);
  EXPECT_THAT(fields, ::testing::ElementsAre("spec.model", "spec.hyperparameters.lora_rank",
                                             "spec.hyperparameters.learning_rate", "spec.hyperparameters.schedule",
                                             "spec.hyperparameters.packing", "spec.hyperparameters.target_modules"));
}

TEST_F(JobFileTest, BadValues) {
  EXPECT_THAT(Error("spec: {hyperparameters: {schedule: spiral}}"), HasSubstr("linear, cosine, constant"));
  EXPECT_THAT(Error("spec: {hyperparameters: {lora_rank: 99999999999}}"), HasSubstr("whole number in range"));
  EXPECT_THAT(Error("spec: {hyperparameters: {seed: -1}}"), HasSubstr("whole number"));
  EXPECT_THAT(Error("spec: {hyperparameters: {learning_rate: .nan}}"), HasSubstr("finite number"));
  EXPECT_THAT(Error("model: a\nmodel: b\n"), HasSubstr("appears more than once"));
  EXPECT_THAT(Error("- model: a\n"), HasSubstr("must be a mapping"));
  EXPECT_THAT(Error("model: [unclosed\n"), HasSubstr("job.yaml"));
  EXPECT_THAT(Error("a: b: c\n"), HasSubstr("job.yaml:1: "));
  EXPECT_THAT(Error("hyperparameters: 3\n"), HasSubstr("must be a mapping"));
  EXPECT_THAT(Error("labels: {a: {b: c}}\n"), HasSubstr("labels"));
  EXPECT_THAT(Error("suffix: {a: b}\n"), HasSubstr("must be a single value"));
}

TEST_F(JobFileTest, PathsAreRelativeToTheFileUnlessTheBlobIsNamed) {
  const auto absolute = Parse("dataset: {file_name: /data/train.jsonl}\n");
  ASSERT_TRUE(absolute.ok());
  EXPECT_EQ(absolute->spec().dataset().file_name(), "/data/train.jsonl");
  const auto named = Parse("dataset: {file_name: train.jsonl, sha256: abc, size_bytes: 3}\n");
  ASSERT_TRUE(named.ok());
  EXPECT_EQ(named->spec().dataset().file_name(), "train.jsonl");
}

TEST_F(JobFileTest, MissingFileIsNamed) {
  const auto root = ReadJobFile((dir_ / "absent.yaml").string());
  EXPECT_EQ(root.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(root.status().message()), HasSubstr("absent.yaml"));
}

}  // namespace
}  // namespace longhaul::wire
