#include "worker/job_yaml.h"

#include <gtest/gtest.h>

#include "base/env.h"
#include "tests/worker/attempt/temp_dir.h"

namespace longhaul::trainer {
namespace {

class JobYamlTest : public ::testing::Test {
 protected:
  absl::StatusOr<v1::JobSpec> Parse(const std::string& yaml) {
    EXPECT_TRUE(WriteFileAtomic(temp_.At("job.yaml"), yaml).ok());
    return ReadJobYaml(temp_.At("job.yaml"));
  }
  std::string Error(const std::string& yaml) { return std::string(Parse(yaml).status().message()); }
  TempDir temp_;
};

TEST_F(JobYamlTest, ReadsASpecAtTheTopOrBelowItsName) {
  const std::string fields =
      "model: tiny\n"
      "dataset: {file_name: train.jsonl, format: messages}\n"
      "hyperparameters:\n"
      "  lora_rank: 8\n"
      "  learning_rate: 5e-4\n"
      "  schedule: cosine\n"
      "  packing: false\n"
      "  seed: 18446744073709551615\n"
      "  target_modules: [q_proj, v_proj]\n";
  std::string indented = "suffix: words\nlabels: {team: a}\nspec:\n";
  for (size_t at = 0; at < fields.size();) {
    const size_t end = fields.find('\n', at);
    indented += "  " + fields.substr(at, end - at) + "\n";
    at = end + 1;
  }
  for (const std::string& yaml : {fields, indented}) {
    const auto spec = Parse(yaml);
    ASSERT_TRUE(spec.ok()) << spec.status();
    EXPECT_EQ(spec->model(), "tiny");
    EXPECT_EQ(spec->dataset().file_name(), temp_.At("train.jsonl"));
    EXPECT_EQ(spec->dataset().format(), v1::DATASET_FORMAT_MESSAGES);
    EXPECT_EQ(spec->hyperparameters().lora_rank(), 8);
    EXPECT_EQ(spec->hyperparameters().learning_rate(), 5e-4);
    EXPECT_EQ(spec->hyperparameters().schedule(), v1::LEARNING_RATE_SCHEDULE_COSINE);
    EXPECT_TRUE(spec->hyperparameters().has_packing());
    EXPECT_FALSE(spec->hyperparameters().packing());
    EXPECT_EQ(spec->hyperparameters().seed(), 18446744073709551615ull);
    EXPECT_EQ(spec->hyperparameters().target_modules(1), "v_proj");
  }
}

TEST_F(JobYamlTest, FaultsNameFileLineAndField) {
  EXPECT_NE(Error("model: tiny\nhyperparameters:\n  lora_rnak: 8\n").find("line 3: hyperparameters.lora_rnak"),
            std::string::npos);
  EXPECT_NE(Error("hyperparameters:\n  lora_rnak: 8\n").find("did you mean \"lora_rank\""), std::string::npos);
  EXPECT_NE(Error("hyperparameters: {lora_rank: eight}").find("whole number"), std::string::npos);
  EXPECT_NE(Error("hyperparameters: {lora_rank: 99999999999}").find("job.yaml"), std::string::npos);
  EXPECT_NE(Error("hyperparameters: {learning_rate: fast}").find("must be a number"), std::string::npos);
  EXPECT_NE(Error("hyperparameters: {packing: maybe}").find("true or false"), std::string::npos);
  EXPECT_NE(Error("hyperparameters: {schedule: cosin}").find("\"cosine\""), std::string::npos);
  EXPECT_NE(Error("hyperparameters: 3").find("must be a mapping"), std::string::npos);
  EXPECT_NE(Error("model: [a]").find("single value"), std::string::npos);
  EXPECT_NE(Error("a: b: c").find("job.yaml line 1"), std::string::npos);
  EXPECT_FALSE(Parse("- a").ok());
  EXPECT_EQ(ReadJobYaml(temp_.At("absent")).status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace longhaul::trainer
