#include "model/train_shape.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "nlohmann/json.hpp"
#include "tests/model/shapes.h"

namespace longhaul {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(LoraTargets, NamesGoBothWaysInOneOrder) {
  const auto targets = LoraTargetsFromNames({"up_proj", "q_proj"});
  ASSERT_TRUE(targets.ok());
  EXPECT_THAT(LoraTargetNames(*targets), ElementsAre("q_proj", "up_proj"));
  EXPECT_THAT(LoraTargetNames(kAllLoraTargets),
              ElementsAre("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"));
}

TEST(LoraTargets, RefusesUnknownRepeatedAndNone) {
  EXPECT_THAT(std::string(LoraTargetsFromNames({"q_porj"}).status().message()), HasSubstr("did you mean \"q_proj\""));
  EXPECT_THAT(std::string(LoraTargetsFromNames({"k_proj", "k_proj"}).status().message()), HasSubstr("twice"));
  EXPECT_FALSE(LoraTargetsFromNames({}).ok());
}

TEST(TrainShape, AdapterParamsOfSmolLm2) {
  TrainShape train;
  train.lora_rank = 16;
  // q 576+576, k and v 576+192, o 576+576, gate, up, down 576+1536.
  EXPECT_EQ(AdapterParams(SmolLm2Shape(), train), 30 * 16 * (1152 + 2 * 768 + 1152 + 3 * 2112));
  train.lora_targets = 1;
  EXPECT_EQ(AdapterParams(SmolLm2Shape(), train), 30 * 16 * 1152);
}

TEST(TrainShape, EveryRangeIsChecked) {
  const auto bad = [](auto change) {
    TrainShape train;
    change(&train);
    return !ValidateTrainShape(train).ok();
  };
  EXPECT_TRUE(ValidateTrainShape(TrainShape{}).ok());
  EXPECT_TRUE(bad([](TrainShape* t) { t->lora_rank = 0; }));
  EXPECT_TRUE(bad([](TrainShape* t) { t->lora_rank = 1025; }));
  EXPECT_TRUE(bad([](TrainShape* t) { t->batch_size = 0; }));
  EXPECT_TRUE(bad([](TrainShape* t) { t->sequence_length = 0; }));
  EXPECT_TRUE(bad([](TrainShape* t) { t->longest_document = 4096; }));
  EXPECT_TRUE(bad([](TrainShape* t) { t->accumulation_steps = 0; }));
  EXPECT_TRUE(bad([](TrainShape* t) { t->lora_targets = 256; }));
  EXPECT_TRUE(bad([](TrainShape* t) {
    t->batch_size = 4096;
    t->sequence_length = int64_t{1} << 24;
  }));
}

TEST(TrainShape, JsonRoundTripsExactly) {
  TrainShape train;
  train.compute = ComputeType::kBF16;
  train.base = BaseWeights::kAsStored;
  train.lora_rank = 8;
  train.lora_targets = 5;
  train.lora_dropout = true;
  train.batch_size = 3;
  train.sequence_length = 77;
  train.longest_document = 50;
  train.accumulation_steps = 4;
  train.dataset_tokens = 12345;
  train.dataset_bytes = 99999;
  train.cpu_threads = 2;
  const nlohmann::json written = TrainShapeToJson(train);
  const auto read = TrainShapeFromJson(nlohmann::json::parse(written.dump()));
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(TrainShapeToJson(*read), written);
}

}  // namespace
}  // namespace longhaul
