#include "clients/cli/job_flags.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "wire/job_file.h"

namespace longhaul::cli {
namespace {

absl::StatusOr<v1::CreateFineTuneJobRequest> Parse(std::vector<std::string> arguments, YAML::Node root) {
  CLI::App app;
  JobFlags flags;
  flags.Register(app);
  std::reverse(arguments.begin(), arguments.end());
  app.parse(arguments);
  if (absl::Status status = flags.Apply(root); !status.ok()) return status;
  return wire::JobRequestFromYaml(root, "job.yaml");
}

absl::StatusOr<v1::CreateFineTuneJobRequest> Parse(const std::vector<std::string>& arguments) {
  return Parse(arguments, YAML::Node(YAML::NodeType::Map));
}

TEST(JobFlags, ShortAndLongNames) {
  const auto request = Parse({"--model",
                              "m",
                              "--data",
                              "d.jsonl",
                              "--data-format",
                              "text",
                              "--rank",
                              "8",
                              "--lr",
                              "5e-4",
                              "--steps",
                              "60",
                              "--accumulation",
                              "4",
                              "--max-seq-len",
                              "512",
                              "--no-packing",
                              "--name",
                              "x",
                              "--label",
                              "a=1",
                              "--label",
                              "b=c=d",
                              "--targets",
                              "q_proj,v_proj",
                              "--retry-limit",
                              "0",
                              "--device-share",
                              "fit",
                              "--priority",
                              "low",
                              "--use-rslora"});
  ASSERT_TRUE(request.ok()) << request.status();
  const v1::JobSpec& spec = request->spec();
  EXPECT_EQ(spec.model(), "m");
  EXPECT_EQ(spec.dataset().file_name(), "d.jsonl");
  EXPECT_EQ(spec.dataset().format(), v1::DATASET_FORMAT_TEXT);
  EXPECT_EQ(spec.hyperparameters().lora_rank(), 8);
  EXPECT_DOUBLE_EQ(spec.hyperparameters().learning_rate(), 5e-4);
  EXPECT_EQ(spec.hyperparameters().max_steps(), 60);
  EXPECT_EQ(spec.hyperparameters().gradient_accumulation_steps(), 4);
  EXPECT_EQ(spec.hyperparameters().max_sequence_length(), 512);
  EXPECT_TRUE(spec.hyperparameters().has_packing());
  EXPECT_FALSE(spec.hyperparameters().packing());
  EXPECT_TRUE(spec.hyperparameters().use_rslora());
  EXPECT_EQ(spec.hyperparameters().target_modules_size(), 2);
  EXPECT_EQ(spec.retry().limit(), 0);
  EXPECT_TRUE(spec.retry().has_limit());
  EXPECT_EQ(spec.resources().device_share(), v1::DEVICE_SHARE_FIT);
  EXPECT_EQ(spec.priority(), v1::PRIORITY_CLASS_LOW);
  EXPECT_EQ(request->suffix(), "x");
  EXPECT_EQ(request->labels().at("b"), "c=d");
}

// A scalar of every message that flags are made of, by its long name: nothing of the spec is out of reach.
TEST(JobFlags, EveryFieldHasAFlag) {
  CLI::App app;
  JobFlags flags;
  flags.Register(app);
  const auto expect_all = [&](const google::protobuf::Descriptor* type, const std::string& prefix) {
    for (int i = 0; i < type->field_count(); ++i) {
      if (type->field(i)->cpp_type() == google::protobuf::FieldDescriptor::CPPTYPE_MESSAGE) continue;
      std::string name = prefix + type->field(i)->name();
      std::replace(name.begin(), name.end(), '_', '-');
      EXPECT_NE(app.get_option_no_throw(name), nullptr) << name;
    }
  };
  expect_all(v1::Hyperparameters::descriptor(), "--");
  expect_all(v1::Resources::descriptor(), "--");
  expect_all(v1::RetryPolicy::descriptor(), "--retry-");
  for (const char* name : {"--model", "--priority", "--deadline-seconds", "--data", "--eval-data"}) {
    EXPECT_NE(app.get_option_no_throw(name), nullptr) << name;
  }
}

TEST(JobFlags, HelpSaysWhereEachComputeTypeIs) {
  CLI::App app;
  JobFlags flags;
  flags.Register(app);
  const std::string help = app.get_option("--compute-type")->get_description();
  EXPECT_THAT(help, ::testing::HasSubstr("bf16"));
  EXPECT_THAT(help, ::testing::HasSubstr("fp8 (Hopper GPUs)"));
}

// A field that is new in the proto gets its words here, or fails.
TEST(JobFlags, EveryFlagSaysWhatItIsInASentence) {
  CLI::App app;
  JobFlags flags;
  flags.Register(app);
  int seen = 0;
  for (const CLI::Option* option : app.get_options()) {
    if (option->get_name() == "--help") continue;
    ++seen;
    const std::string help = option->get_description();
    EXPECT_GE(std::count(help.begin(), help.end(), ' '), 3) << option->get_name() << ": " << help;
    EXPECT_EQ(help.find("spec."), std::string::npos) << option->get_name() << ": " << help;
    // Whether it may be left out, and what then: but for what has no default.
    const bool free = option->get_group() == "Job" || option->get_name() == "--device-share-bytes";
    EXPECT_TRUE(free || help.find("default") != std::string::npos) << option->get_name() << ": " << help;
  }
  EXPECT_GE(seen, 40);
}

TEST(JobFlags, OverrideTheFile) {
  const YAML::Node root =
      YAML::Load("{spec: {model: a, dataset: {sha256: x}, hyperparameters: {lora_rank: 4, epochs: 2}}}");
  const auto request = Parse({"--rank", "16", "--data", "other.jsonl"}, root);
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_EQ(request->spec().model(), "a");
  EXPECT_EQ(request->spec().hyperparameters().lora_rank(), 16);
  EXPECT_DOUBLE_EQ(request->spec().hyperparameters().epochs(), 2);
  EXPECT_EQ(request->spec().dataset().sha256(), "");
  EXPECT_EQ(request->spec().dataset().file_name(), "other.jsonl");
}

TEST(JobFlags, BadValuesNameTheField) {
  const auto rank = Parse({"--rank", "many"});
  EXPECT_THAT(std::string(rank.status().message()),
              ::testing::HasSubstr("command line: spec.hyperparameters.lora_rank"));
  const auto label = Parse({"--label", "novalue"});
  EXPECT_THAT(std::string(label.status().message()), ::testing::HasSubstr("must be KEY=VALUE"));
  const auto twice = Parse({"--label", "team=a", "--label", "team=b"});
  EXPECT_THAT(std::string(twice.status().message()), ::testing::HasSubstr("--label gives 'team' twice"));
}

}  // namespace
}  // namespace longhaul::cli
