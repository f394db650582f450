// Needs a device. What is planted in the base's files is refused when they are loaded; what comes later is skipped.
#include "base/error.h"
#include "model/cuda_layout.h"
#include "tests/worker/train/cuda_rig.h"
#include "tests/worker/train/plant.h"

namespace longhaul::train {
namespace {

void ExpectSkipped(const TrainShape& train, const CudaTweaks& tweaks) {
  const ModelShape shape = CudaTinyShape(/*qwen3=*/true);
  ExpectPlantsSkippedCountedAndNamed(CudaPlan(shape, train, tweaks), Bf16Source(shape), train.sequence_length - 3);
}

TEST(CudaNonFinite, PlantedAnywhereTheUpdateIsSkippedCountedAndNamed) { ExpectSkipped(CudaTinyTrain(1, 128), {1, 1}); }

TEST(CudaNonFinite, InFp8Too) {
  if (ComputeCapabilityOf(ThisGpu().isa) / 10 != 9) GTEST_SKIP() << "FP8 products with a scale a row are Hopper's";
  TrainShape train = CudaTinyTrain(1, 128);
  train.compute = ComputeType::kFP8;
  ExpectSkipped(train, {0, 1});
}

TEST(CudaNonFinite, WithHeadsInGroupsToo) {
  ExpectSkipped(CudaTinyTrain(1, 128), {0, 1, 64, 0, 1, false, 2, true, true});
}

constexpr float kTooLargeForBf16 = 3.4e38f;

// One value of one tensor is not finite.
class SpoiltSource final : public WeightSource {
 public:
  SpoiltSource(const ModelShape& shape, std::string name, float value)
      : inner_(shape), name_(std::move(name)), value_(value) {}
  const ModelShape& shape() const override { return inner_.shape(); }
  StoredAs Type(const std::string& name) const override { return inner_.Type(name); }
  absl::Status ReadRows(const std::string& name, int64_t begin, int64_t end, float* out) const override {
    const absl::Status status = inner_.ReadRows(name, begin, end, out);
    if (name == name_ && begin == 0) out[7] = value_;
    return status;
  }

 private:
  Bf16Source inner_;
  std::string name_;
  float value_;
};

TEST(CudaNonFinite, AWeightOfTheBaseThatIsNotFiniteIsRefusedByName) {
  const ModelShape shape = CudaTinyShape(/*qwen3=*/true);
  const MemoryPlan plan = CudaPlan(shape, CudaTinyTrain(1, 128), {0, 1});  // layer 0 cached, layer 1 in NF4
  FixedBatches batches({TinyBatch({128}, shape.vocab)}, 1);
  const RealClock clock;
  for (const std::string& name :
       {std::string("model.layers.0.input_layernorm.weight"), std::string("model.layers.1.self_attn.k_norm.weight"),
        std::string("model.layers.0.mlp.up_proj.weight"), std::string("model.layers.1.self_attn.v_proj.weight"),
        std::string("model.norm.weight"), std::string("model.embed_tokens.weight"), std::string("lm_head.weight")}) {
    for (const float value : {std::nanf(""), -std::numeric_limits<float>::infinity(), kTooLargeForBf16}) {
      const bool kept_in_bf16 = name.find("embed") != std::string::npos || name.find("lm_head") != std::string::npos;
      if (value == kTooLargeForBf16 && !kept_in_bf16) continue;
      PlantedRun run;
      RunToEnd control;
      TrainerOptions options;
      options.plan = plan;
      options.hyper.max_steps = 1;
      const auto trainer =
          Trainer::Create(options, SpoiltSource(shape, name, value), &batches, nullptr, &run, &control, &clock);
      EXPECT_EQ(ErrorReason(trainer.status()), "INVALID_MODEL") << name << " " << value;
      EXPECT_THAT(std::string(trainer.status().message()), testing::HasSubstr(name)) << value;
    }
  }
}

}  // namespace
}  // namespace longhaul::train
