#include "worker/train/generate.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "tests/worker/train/rig.h"

namespace longhaul::train {
namespace {

std::unique_ptr<Generator> MakeGenerator(const ModelShape& shape, const formats::LoadedAdapter* adapter) {
  TrainShape train = TinyTrain(ComputeType::kF32, 1, 40);
  train.lora_targets = adapter == nullptr ? 0 : kAllLoraTargets;
  const auto plan = MakeGeneratePlan(shape, train, ThisCpu());
  EXPECT_TRUE(plan.ok()) << plan.status();
  auto generator = Generator::Create(*plan, SyntheticWeightSource(shape, 3), adapter);
  EXPECT_TRUE(generator.ok()) << generator.status();
  return std::move(*generator);
}

formats::LoadedAdapter AdapterOf(const Rig& rig) {
  formats::LoadedAdapter loaded;
  loaded.config.r = rig.adapter->rank();
  loaded.config.lora_alpha = 6;
  const std::vector<double> master = Values(rig.adapter->master());
  for (const LoraModule& m : rig.adapter->modules()) {
    formats::LoraPair pair;
    pair.layer = m.layer;
    pair.target = LoraTargetName(m.target);
    pair.in = m.in;
    pair.out = m.out;
    const auto slice = [&](int64_t offset, int64_t n) {
      return std::vector<float>(master.begin() + offset, master.begin() + offset + n);
    };
    pair.a = slice(m.a_offset, m.in * loaded.config.r);
    pair.b = slice(m.b_offset, m.out * loaded.config.r);
    loaded.pairs.push_back(std::move(pair));
  }
  return loaded;
}

// Every token that the cache gives is the argmax of the training engine's own forward pass over the whole prefix.
void ExpectTokensOfFullForward(const ModelShape& shape, bool with_adapter) {
  TrainShape train = TinyTrain(ComputeType::kF32, 1, 40);
  Rig rig(TinyPlan(shape, train), /*scale=*/with_adapter ? 2.0 : 0.0);
  const formats::LoadedAdapter adapter = AdapterOf(rig);
  const std::unique_ptr<Generator> generator = MakeGenerator(shape, with_adapter ? &adapter : nullptr);
  std::vector<int32_t> all = {5, 61, 2, 2, 33};
  const auto tokens = generator->Generate(all, 20, {}, [](int32_t) { return true; });
  ASSERT_TRUE(tokens.ok()) << tokens.status();
  ASSERT_EQ(tokens->size(), 20u);
  for (int32_t token : *tokens) {
    TinyBatch prefix({static_cast<int64_t>(all.size())});
    prefix.ids = all;
    ASSERT_TRUE(rig.decoder->Forward(rig.ops->Bring(prefix.view()), Rig::Go));
    const int64_t rows = static_cast<int64_t>(all.size());
    const kernels::Tensor logits = rig.loss->Logits(rig.decoder->Stream(shape.layers, rows).Rows(rows - 1, rows));
    const float* const row = logits.as<float>();
    EXPECT_EQ(token, static_cast<int32_t>(std::max_element(row, row + shape.vocab) - row)) << all.size();
    all.push_back(token);
  }
}

TEST(Generator, TokensAreThoseOfTheFullForwardPass) {
  ExpectTokensOfFullForward(TinyShape(), false);
  ExpectTokensOfFullForward(TinyShape(), true);
  ExpectTokensOfFullForward(TinyShape(true, false), true);
}

TEST(Generator, EndsAtAnEndTokenAndWhereTheCallerStops) {
  const std::unique_ptr<Generator> generator = MakeGenerator(TinyShape(), nullptr);
  const auto go = [](int32_t) { return true; };
  const auto all = generator->Generate({1, 2, 3}, 10, {}, go);
  ASSERT_TRUE(all.ok());
  const int32_t end = all->at(4);
  const size_t first = static_cast<size_t>(std::find(all->begin(), all->end(), end) - all->begin());
  EXPECT_EQ(generator->Generate({1, 2, 3}, 10, {end}, go)->size(), first);
  int seen = 0;
  EXPECT_EQ(generator->Generate({1, 2, 3}, 10, {}, [&](int32_t) { return ++seen < 3; })->size(), 3u);
  EXPECT_TRUE(generator->Generate({1, 2, 3}, 0, {}, go)->empty());
}

TEST(Generator, RefusesBadPrompts) {
  const std::unique_ptr<Generator> generator = MakeGenerator(TinyShape(), nullptr);
  const auto go = [](int32_t) { return true; };
  EXPECT_FALSE(generator->Generate({}, 1, {}, go).ok());
  EXPECT_FALSE(generator->Generate({67}, 1, {}, go).ok());
  EXPECT_FALSE(generator->Generate({-1}, 1, {}, go).ok());
  EXPECT_FALSE(generator->Generate(std::vector<int32_t>(30, 1), 11, {}, go).ok());
}

}  // namespace
}  // namespace longhaul::train
