#include "wire/model_values.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "base/error.h"
#include "google/protobuf/util/message_differencer.h"
#include "wire/job_spec.h"
#include "wire/train_shape_of_spec.h"

namespace longhaul::wire {
namespace {

using google::protobuf::util::MessageDifferencer;

ModelShape Shape() {
  ModelShape shape;
  shape.family = "llama";
  shape.layers = 30;
  shape.hidden = 576;
  shape.intermediate = 1536;
  shape.heads = 9;
  shape.kv_heads = 3;
  shape.head_dim = 64;
  shape.vocab = 49152;
  shape.max_position_embeddings = 8192;
  shape.rms_norm_eps = 1e-5;
  shape.tied_embeddings = true;
  shape.rope.theta = 100000;
  return shape;
}

TEST(ModelValuesTest, ShapesRoundTrip) {
  for (const RopeScaling scaling : {RopeScaling::kNone, RopeScaling::kLinear, RopeScaling::kLlama3, RopeScaling::kYarn,
                                    RopeScaling::kDynamic, RopeScaling::kLongRope}) {
    ModelShape shape = Shape();
    shape.rope.scaling = scaling;
    if (scaling != RopeScaling::kNone) shape.rope.factor = 8;
    if (scaling == RopeScaling::kYarn) {
      shape.rope.beta_fast = 16;
      shape.rope.beta_slow = 2;
      shape.rope.attention_factor = 1.25;
      shape.rope.truncate = false;
    } else if (scaling == RopeScaling::kDynamic) {
      shape.rope.original_max_position_embeddings = 2048;
    } else if (scaling == RopeScaling::kLongRope) {
      shape.rope.original_max_position_embeddings = 2048;
      shape.rope.attention_factor = 1.25;
      shape.rope.short_factor.assign(32, 1.5);
      shape.rope.long_factor.assign(32, 4.5);
    }
    const v1::ModelShape proto = ToProto(shape);
    const auto back = FromProto(proto);
    ASSERT_TRUE(back.ok()) << back.status();
    EXPECT_TRUE(MessageDifferencer::Equals(ToProto(*back), proto));
    EXPECT_EQ(ModelShapeToJson(*back), ModelShapeToJson(shape));
  }
}

TEST(ModelValuesTest, AHostileShapeIsRefused) {
  v1::ModelShape proto = ToProto(Shape());
  proto.mutable_rope()->set_scaling("su");
  EXPECT_EQ(ErrorViolations(FromProto(proto).status()).at(0).field, "model_shape.rope.scaling");
  proto.mutable_rope()->set_scaling("longrope");  // without its lists, which the engine would read beyond their ends
  proto.mutable_rope()->set_factor(8);
  EXPECT_EQ(ErrorViolations(FromProto(proto).status()).at(0).field, "model.rope.short_factor");
  proto = ToProto(Shape());
  proto.set_layers(int64_t{1} << 40);
  EXPECT_FALSE(FromProto(proto).ok());
  EXPECT_FALSE(FromProto(v1::ModelShape()).ok());
}

TEST(ModelValuesTest, DeviceFactsRoundTrip) {
  DeviceFacts facts;
  facts.device_class = "cpu-avx512_bf16-8t";
  facts.isa = "avx512_bf16";
  facts.has_bf16 = true;
  facts.host_bytes = int64_t{31} << 30;
  facts.disk_bytes = 12345;
  facts.cpu_threads = 8;
  facts.gemm_flops = 1.25e11;
  facts.runtime_host_bytes = 1 << 27;
  facts.cudnn_version = 91801;
  facts.has_fp8 = true;
  facts.memory_bytes_per_second = 4e12;
  const v1::DeviceFacts proto = ToProto(facts);
  const auto back = FromProto(proto);
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_TRUE(MessageDifferencer::Equals(ToProto(*back), proto));
  EXPECT_EQ(back->cudnn_version, 91801);
  EXPECT_TRUE(back->has_fp8);
  EXPECT_DOUBLE_EQ(back->memory_bytes_per_second, 4e12);
  v1::DeviceFacts bad = proto;
  bad.set_kind(v1::DEVICE_KIND_UNSPECIFIED);
  EXPECT_FALSE(FromProto(bad).ok());
  bad = proto;
  bad.set_host_bytes(-1);
  EXPECT_FALSE(FromProto(bad).ok());
  for (const double rate : {-1.0, std::numeric_limits<double>::infinity(), std::nan("")}) {
    bad = proto;
    bad.set_memory_bytes_per_second(rate);
    EXPECT_FALSE(FromProto(bad).ok()) << rate;
  }
}

TEST(TrainShapeOfSpecTest, TakesTheSpecTheReportAndTheDevice) {
  v1::JobSpec spec;
  spec.mutable_dataset()->set_size_bytes(3000);
  spec.mutable_eval_dataset()->set_size_bytes(300);
  auto* hyper = spec.mutable_hyperparameters();
  hyper->set_lora_rank(8);
  hyper->set_batch_size(2);
  hyper->set_max_sequence_length(512);
  hyper->set_gradient_accumulation_steps(4);
  hyper->set_lora_dropout(0.1);
  hyper->add_target_modules("q_proj");
  ResolveJobSpec(&spec, Shape(), "gguf:Q4_1");
  DeviceFacts facts;
  const auto before = TrainShapeOfSpec(spec, nullptr, facts);
  ASSERT_TRUE(before.ok()) << before.status();
  EXPECT_EQ(before->compute, ComputeType::kF32);
  EXPECT_EQ(before->base, BaseWeights::kAsStored);
  EXPECT_EQ(before->lora_rank, 8);
  EXPECT_EQ(before->lora_targets, 1u);
  EXPECT_TRUE(before->lora_dropout);
  EXPECT_EQ(before->tokens(), 1024);
  EXPECT_EQ(before->longest(), 512);
  EXPECT_EQ(before->accumulation_steps, 4);
  EXPECT_EQ(before->dataset_bytes, 3300);
  EXPECT_EQ(before->dataset_tokens, 1100);
  EXPECT_EQ(before->cpu_threads, 0);
  EXPECT_FALSE(before->deterministic) << "a GPU is slower for it, and nobody has asked";

  v1::DataReport report;
  report.set_tokens(777);
  report.set_longest_tokens(100);
  facts.has_bf16 = true;
  spec.mutable_resources()->set_cpu_threads(2);
  spec.mutable_hyperparameters()->set_deterministic(true);
  const auto after = TrainShapeOfSpec(spec, &report, facts);
  ASSERT_TRUE(after.ok()) << after.status();
  EXPECT_EQ(after->compute, ComputeType::kBF16);
  EXPECT_EQ(after->longest(), 100);
  EXPECT_EQ(after->dataset_tokens, 777);
  EXPECT_EQ(after->cpu_threads, 2);
  EXPECT_TRUE(after->deterministic);
  spec.mutable_hyperparameters()->set_compute_type(v1::COMPUTE_TYPE_F32);
  EXPECT_EQ(TrainShapeOfSpec(spec, &report, facts)->compute, ComputeType::kF32);
  spec.mutable_hyperparameters()->set_compute_type(v1::COMPUTE_TYPE_FP8);
  EXPECT_EQ(TrainShapeOfSpec(spec, &report, facts)->compute, ComputeType::kFP8);
}

}  // namespace
}  // namespace longhaul::wire
