#include "wire/job_spec.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <set>

#include "base/error.h"
#include "base/limits.h"
#include "google/protobuf/util/message_differencer.h"

namespace longhaul::wire {
namespace {

using google::protobuf::util::MessageDifferencer;

ModelShape TinyShape() {
  ModelShape shape;
  shape.family = "llama";
  shape.layers = 2;
  shape.hidden = 64;
  shape.intermediate = 128;
  shape.heads = 4;
  shape.kv_heads = 2;
  shape.head_dim = 16;
  shape.vocab = 300;
  shape.max_position_embeddings = 512;
  return shape;
}

v1::JobSpec GoodSpec() {
  v1::JobSpec spec;
  spec.set_model("tiny");
  spec.mutable_dataset()->set_sha256(std::string(64, 'a'));
  spec.mutable_dataset()->set_size_bytes(1000);
  return spec;
}

struct Case {
  const char* field;
  const char* part;  // of the description
  std::function<void(v1::JobSpec*)> change;
};

v1::Hyperparameters* H(v1::JobSpec* spec) { return spec->mutable_hyperparameters(); }
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInf = std::numeric_limits<double>::infinity();

std::vector<Case> Cases() {
  return {
      {"spec.model", "empty", [](auto* s) { s->clear_model(); }},
      {"spec.model", "bytes", [](auto* s) { s->set_model(std::string(257, 'm')); }},
      {"spec.dataset", "absent", [](auto* s) { s->clear_dataset(); }},
      {"spec.dataset.sha256", "64", [](auto* s) { s->mutable_dataset()->set_sha256("../../etc/passwd"); }},
      {"spec.dataset.sha256", "64", [](auto* s) { s->mutable_dataset()->set_sha256(std::string(64, 'A')); }},
      {"spec.dataset.size_bytes", "is 0", [](auto* s) { s->mutable_dataset()->set_size_bytes(0); }},
      {"spec.dataset.size_bytes", "is -5", [](auto* s) { s->mutable_dataset()->set_size_bytes(-5); }},
      {"spec.dataset.format", "9",
       [](auto* s) { s->mutable_dataset()->set_format(static_cast<v1::DatasetFormat>(9)); }},
      {"spec.dataset.file_name", "255", [](auto* s) { s->mutable_dataset()->set_file_name(std::string(300, 'x')); }},
      {"spec.eval_dataset.sha256", "64", [](auto* s) { s->mutable_eval_dataset()->set_size_bytes(1); }},
      {"spec.hyperparameters.lora_rank", "is 0; must be 1 to 1024", [](auto* s) { H(s)->set_lora_rank(0); }},
      {"spec.hyperparameters.lora_rank", "1024", [](auto* s) { H(s)->set_lora_rank(1025); }},
      {"spec.hyperparameters.lora_rank", "is -1", [](auto* s) { H(s)->set_lora_rank(-1); }},
      {"spec.hyperparameters.lora_alpha", "nan", [](auto* s) { H(s)->set_lora_alpha(kNan); }},
      {"spec.hyperparameters.lora_alpha", "is 0", [](auto* s) { H(s)->set_lora_alpha(0); }},
      {"spec.hyperparameters.lora_dropout", "is 1;", [](auto* s) { H(s)->set_lora_dropout(1); }},
      {"spec.hyperparameters.lora_dropout", "is -0.1", [](auto* s) { H(s)->set_lora_dropout(-0.1); }},
      {"spec.hyperparameters.target_modules[1]", "did you mean \"q_proj\"?",
       [](auto* s) {
         H(s)->add_target_modules("v_proj");
         H(s)->add_target_modules("q_porj");
       }},
      {"spec.hyperparameters.target_modules[1]", "second time",
       [](auto* s) {
         H(s)->add_target_modules("v_proj");
         H(s)->add_target_modules("v_proj");
       }},
      {"spec.hyperparameters.learning_rate", "is 0;", [](auto* s) { H(s)->set_learning_rate(0); }},
      {"spec.hyperparameters.learning_rate", "is -0.001", [](auto* s) { H(s)->set_learning_rate(-1e-3); }},
      {"spec.hyperparameters.learning_rate", "is nan", [](auto* s) { H(s)->set_learning_rate(kNan); }},
      {"spec.hyperparameters.learning_rate", "is inf", [](auto* s) { H(s)->set_learning_rate(kInf); }},
      {"spec.hyperparameters.schedule", "linear, cosine, constant",
       [](auto* s) { H(s)->set_schedule(static_cast<v1::LearningRateSchedule>(12)); }},
      {"spec.hyperparameters.warmup_ratio", "is 1.5", [](auto* s) { H(s)->set_warmup_ratio(1.5); }},
      {"spec.hyperparameters.warmup_steps", "is -1", [](auto* s) { H(s)->set_warmup_steps(-1); }},
      {"spec.hyperparameters.weight_decay", "is -1", [](auto* s) { H(s)->set_weight_decay(-1); }},
      {"spec.hyperparameters.adam_beta1", "is 1;", [](auto* s) { H(s)->set_adam_beta1(1); }},
      {"spec.hyperparameters.adam_beta2", "is -inf", [](auto* s) { H(s)->set_adam_beta2(-kInf); }},
      {"spec.hyperparameters.adam_epsilon", "is 0;", [](auto* s) { H(s)->set_adam_epsilon(0); }},
      {"spec.hyperparameters.max_grad_norm", "is -1", [](auto* s) { H(s)->set_max_grad_norm(-1); }},
      {"spec.hyperparameters.epochs", "is 0;", [](auto* s) { H(s)->set_epochs(0); }},
      {"spec.hyperparameters.epochs", "is inf", [](auto* s) { H(s)->set_epochs(kInf); }},
      {"spec.hyperparameters.max_steps", "is 0;", [](auto* s) { H(s)->set_max_steps(0); }},
      {"spec.hyperparameters.batch_size", "is 0;", [](auto* s) { H(s)->set_batch_size(0); }},
      {"spec.hyperparameters.gradient_accumulation_steps", "is 0;",
       [](auto* s) { H(s)->set_gradient_accumulation_steps(0); }},
      {"spec.hyperparameters.max_sequence_length", "is 1;", [](auto* s) { H(s)->set_max_sequence_length(1); }},
      {"spec.hyperparameters.max_sequence_length", "max_position_embeddings is 512",
       [](auto* s) { H(s)->set_max_sequence_length(513); }},
      {"spec.hyperparameters.max_sequence_length", "16777216",
       [](auto* s) {
         H(s)->set_max_sequence_length(int64_t{1} << 40);
         H(s)->set_allow_long_positions(true);
       }},
      {"spec.hyperparameters.eval_examples", "is -1", [](auto* s) { H(s)->set_eval_examples(-1); }},
      {"spec.hyperparameters.eval_examples", "eval_dataset",
       [](auto* s) {
         *s->mutable_eval_dataset() = s->dataset();
         H(s)->set_eval_examples(5);
       }},
      {"spec.hyperparameters.eval_every_steps", "is -1", [](auto* s) { H(s)->set_eval_every_steps(-1); }},
      {"spec.hyperparameters.checkpoint_every_steps", "is 0;", [](auto* s) { H(s)->set_checkpoint_every_steps(0); }},
      {"spec.hyperparameters.base_storage", "nf4, as_stored",
       [](auto* s) { H(s)->set_base_storage(static_cast<v1::BaseStorage>(5)); }},
      {"spec.hyperparameters.compute_type", "f32, bf16, fp8",
       [](auto* s) { H(s)->set_compute_type(static_cast<v1::ComputeType>(9)); }},
      {"spec.resources.device_share", "whole",
       [](auto* s) { s->mutable_resources()->set_device_share(static_cast<v1::DeviceShare>(8)); }},
      {"spec.resources.device_share_bytes", "is 0",
       [](auto* s) { s->mutable_resources()->set_device_share(v1::DEVICE_SHARE_BYTES); }},
      {"spec.resources.device_share_bytes", "must be 0",
       [](auto* s) { s->mutable_resources()->set_device_share_bytes(1); }},
      {"spec.resources.cpu_threads", "is 0;", [](auto* s) { s->mutable_resources()->set_cpu_threads(0); }},
      {"spec.retry.limit", "is -1", [](auto* s) { s->mutable_retry()->set_limit(-1); }},
      {"spec.retry.backoff_seconds", "is -1", [](auto* s) { s->mutable_retry()->set_backoff_seconds(-1); }},
      {"spec.priority", "low, normal, high", [](auto* s) { s->set_priority(static_cast<v1::PriorityClass>(4)); }},
      {"spec.deadline_seconds", "is -1", [](auto* s) { s->set_deadline_seconds(-1); }},
  };
}

TEST(ValidateJobSpecTest, EachFaultNamesItsFieldValueAndLimit) {
  const ModelShape shape = TinyShape();
  for (const Case& c : Cases()) {
    SCOPED_TRACE(std::string(c.field) + " " + c.part);
    v1::JobSpec spec = GoodSpec();
    c.change(&spec);
    const absl::Status status = ValidateJobSpec(spec, &shape);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(ErrorReason(status), "INVALID_FIELD");
    const auto violations = ErrorViolations(status);
    ASSERT_FALSE(violations.empty());
    EXPECT_EQ(violations[0].field, c.field);
    EXPECT_NE(violations[0].description.find(c.part), std::string::npos) << violations[0].description;
  }
}

TEST(ValidateJobSpecTest, AcceptsTheGoodAndTheOptional) {
  const ModelShape shape = TinyShape();
  v1::JobSpec spec = GoodSpec();
  EXPECT_TRUE(ValidateJobSpec(spec, &shape).ok());
  H(&spec)->set_max_sequence_length(513);
  EXPECT_TRUE(ValidateJobSpec(spec, nullptr).ok());
  EXPECT_FALSE(ValidateJobSpec(spec, &shape).ok());
  H(&spec)->set_allow_long_positions(true);
  EXPECT_TRUE(ValidateJobSpec(spec, &shape).ok());
  H(&spec)->set_max_grad_norm(0);
  H(&spec)->set_warmup_steps(0);
  H(&spec)->set_seed(0);
  EXPECT_TRUE(ValidateJobSpec(spec, &shape).ok());
  spec.clear_dataset();
  spec.clear_model();
  EXPECT_TRUE(ValidateJobSpec(spec, &shape, {.require_model = false, .require_dataset = false}).ok());
}

TEST(ValidateJobSpecTest, ReportsAllFaultsAtOnce) {
  v1::JobSpec spec = GoodSpec();
  H(&spec)->set_lora_rank(0);
  H(&spec)->set_learning_rate(-1);
  spec.set_deadline_seconds(-1);
  const absl::Status status = ValidateJobSpec(spec, nullptr);
  std::set<std::string> fields;
  for (const auto& v : ErrorViolations(status)) fields.insert(v.field);
  EXPECT_EQ(fields, (std::set<std::string>{"spec.hyperparameters.lora_rank", "spec.hyperparameters.learning_rate",
                                           "spec.deadline_seconds"}));
  EXPECT_NE(status.message().find("spec.hyperparameters.lora_rank is 0"), absl::string_view::npos);
}

TEST(ValidateJobSpecTest, UnknownFieldsAreFaultsAtEveryDepth) {
  v1::JobSpec spec = GoodSpec();
  spec.GetReflection()->MutableUnknownFields(&spec)->AddVarint(900, 1);
  auto* hyper = H(&spec);
  hyper->GetReflection()->MutableUnknownFields(hyper)->AddLengthDelimited(77, "x");
  v1::JobSpec parsed;
  ASSERT_TRUE(parsed.ParseFromString(spec.SerializeAsString()));
  const auto violations = ErrorViolations(ValidateJobSpec(parsed, nullptr));
  ASSERT_EQ(violations.size(), 2u);
  EXPECT_EQ(violations[0].field, "spec");
  EXPECT_NE(violations[0].description.find("unknown field number 900"), std::string::npos);
  EXPECT_EQ(violations[1].field, "spec.hyperparameters");
  EXPECT_NE(violations[1].description.find("unknown field number 77"), std::string::npos);
}

TEST(ValidateJobSpecTest, AHostileTargetListIsAShortMessage) {
  v1::JobSpec spec = GoodSpec();
  for (int i = 0; i < 100'000; ++i) H(&spec)->add_target_modules(std::string(100, '\n'));
  const absl::Status status = ValidateJobSpec(spec, nullptr);
  EXPECT_FALSE(status.ok());
  EXPECT_LT(status.message().size(), 20'000u);
  EXPECT_EQ(status.message().find('\n'), absl::string_view::npos);
}

TEST(ResolveJobSpecTest, FillsEveryDefaultOnce) {
  const ModelShape shape = TinyShape();
  v1::JobSpec spec = GoodSpec();
  ResolveJobSpec(&spec, shape, "gguf:Q4_1");
  const auto& h = spec.hyperparameters();
  // Every field of the message is there, but those that mean "not given": the other of two, or what a device answers.
  const std::set<std::string> open = {"warmup_steps", "max_steps", "compute_type", "deterministic"};
  for (int i = 0; i < h.GetDescriptor()->field_count(); ++i) {
    const auto* field = h.GetDescriptor()->field(i);
    const bool set =
        field->is_repeated() ? h.GetReflection()->FieldSize(h, field) > 0 : h.GetReflection()->HasField(h, field);
    EXPECT_EQ(set, open.count(field->name()) == 0) << field->name();
  }
  EXPECT_EQ(h.lora_rank(), 16);
  EXPECT_EQ(h.lora_alpha(), 32);
  EXPECT_EQ(h.target_modules_size(), 7);
  EXPECT_EQ(h.max_sequence_length(), 512);  // the model's window is below 2048
  EXPECT_EQ(h.base_storage(), v1::BASE_STORAGE_AS_STORED);
  EXPECT_EQ(h.schedule(), v1::LEARNING_RATE_SCHEDULE_LINEAR);
  EXPECT_EQ(h.seed(), 42u);
  EXPECT_TRUE(h.packing());
  EXPECT_EQ(h.checkpoint_every_steps(), 20);
  EXPECT_EQ(spec.priority(), v1::PRIORITY_CLASS_NORMAL);
  EXPECT_EQ(spec.retry().limit(), 3);
  EXPECT_EQ(spec.retry().backoff_seconds(), 10);
  EXPECT_EQ(spec.resources().device_share(), v1::DEVICE_SHARE_WHOLE);
  EXPECT_TRUE(ValidateJobSpec(spec, &shape).ok());
  v1::JobSpec again = spec;
  ResolveJobSpec(&again, shape, "gguf:Q4_1");
  EXPECT_TRUE(MessageDifferencer::Equals(spec, again));
}

TEST(ResolveJobSpecTest, KeepsWhatIsGivenAlsoZeros) {
  ModelShape shape = TinyShape();
  shape.max_position_embeddings = 8192;
  v1::JobSpec spec = GoodSpec();
  H(&spec)->set_lora_rank(4);
  H(&spec)->set_max_grad_norm(0);
  H(&spec)->set_seed(0);
  H(&spec)->set_packing(false);
  H(&spec)->set_warmup_ratio(0);
  H(&spec)->add_target_modules("v_proj");
  H(&spec)->add_target_modules("q_proj");
  spec.mutable_retry()->set_limit(0);
  ResolveJobSpec(&spec, shape, "safetensors:BF16");
  const auto& h = spec.hyperparameters();
  EXPECT_EQ(h.lora_rank(), 4);
  EXPECT_EQ(h.lora_alpha(), 8);
  EXPECT_EQ(h.max_grad_norm(), 0);
  EXPECT_EQ(h.seed(), 0u);
  EXPECT_FALSE(h.packing());
  EXPECT_EQ(h.warmup_ratio(), 0);
  EXPECT_EQ(std::vector<std::string>(h.target_modules().begin(), h.target_modules().end()),
            (std::vector<std::string>{"q_proj", "v_proj"}));
  EXPECT_EQ(h.max_sequence_length(), 2048);
  EXPECT_EQ(h.base_storage(), v1::BASE_STORAGE_NF4);
  EXPECT_EQ(spec.retry().limit(), 0);
}

}  // namespace
}  // namespace longhaul::wire
