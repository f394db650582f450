// What is accepted at submit, the trainer accepts: every number of the hyperparameters, at every limit that there is.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "base/limits.h"
#include "google/protobuf/descriptor.h"
#include "google/protobuf/message.h"
#include "wire/job_spec.h"
#include "worker/train/hyper.h"
#include "worker/trainer/inputs.h"

namespace longhaul::trainer {
namespace {

using google::protobuf::FieldDescriptor;

v1::JobSpec ValidSpec() {
  v1::JobSpec spec;
  spec.set_model("m");
  spec.mutable_dataset()->set_sha256(std::string(64, 'a'));
  spec.mutable_dataset()->set_size_bytes(1);
  ModelShape shape;
  shape.max_position_embeddings = 512;
  wire::ResolveJobSpec(&spec, shape, "safetensors:F32");
  return spec;
}

std::vector<double> Boundaries() {
  std::vector<double> values = {std::nan(""), std::numeric_limits<double>::infinity(),
                                std::numeric_limits<double>::denorm_min()};
  for (const double at : {0.0, 0.95, 0.999, 0.999999, 0.99999999, 1.0, 10.0, 1000.0, 1e6, 1e8, 1e9}) {
    for (const double sign : {-1.0, 1.0}) {
      values.push_back(sign * at);
      values.push_back(std::nextafter(sign * at, -1e300));
      values.push_back(std::nextafter(sign * at, 1e300));
    }
  }
  return values;
}

TEST(HyperLimitsTest, WhatIsAcceptedAtSubmitTheTrainerAccepts) {
  const v1::JobSpec valid = ValidSpec();
  ASSERT_TRUE(wire::ValidateJobSpec(valid, nullptr).ok()) << wire::ValidateJobSpec(valid, nullptr);
  int accepted = 0;
  int refused = 0;
  const auto walk = [&](const FieldDescriptor* field, auto set, const auto& values, bool both_ways) {
    for (const auto value : values) {
      v1::JobSpec spec = valid;
      set(spec.mutable_hyperparameters(), value);
      const absl::Status submitted = wire::ValidateJobSpec(spec, nullptr);
      const absl::Status trained = train::ValidateHyper(HyperOfSpec(spec));
      SCOPED_TRACE(std::string(field->name()) + " = " + std::to_string(value));
      ++(submitted.ok() ? accepted : refused);
      EXPECT_TRUE(!submitted.ok() || trained.ok()) << trained;
      EXPECT_TRUE(submitted.ok() || !both_ways || !trained.ok()) << submitted;
    }
  };
  const auto* descriptor = v1::Hyperparameters::descriptor();
  const auto* reflection = valid.hyperparameters().GetReflection();
  for (int i = 0; i < descriptor->field_count(); ++i) {
    const FieldDescriptor* field = descriptor->field(i);
    if (field->is_repeated()) continue;
    if (field->cpp_type() == FieldDescriptor::CPPTYPE_DOUBLE) {
      walk(
          field, [&](v1::Hyperparameters* h, double v) { reflection->SetDouble(h, field, v); }, Boundaries(), true);
    }
    // The wire's integers are stricter: what the trainer calls "none" is an absent field there.
    const std::vector<int64_t> steps = {-1, 0, 1, limits::kMaxSteps, limits::kMaxSteps + 1};
    if (field->cpp_type() == FieldDescriptor::CPPTYPE_INT64) {
      walk(
          field, [&](v1::Hyperparameters* h, int64_t v) { reflection->SetInt64(h, field, v); }, steps, false);
    }
    if (field->cpp_type() == FieldDescriptor::CPPTYPE_INT32) {
      walk(
          field, [&](v1::Hyperparameters* h, int64_t v) { reflection->SetInt32(h, field, static_cast<int32_t>(v)); },
          steps, false);
    }
  }
  EXPECT_GT(accepted, 100);
  EXPECT_GT(refused, 100);
}

}  // namespace
}  // namespace longhaul::trainer
