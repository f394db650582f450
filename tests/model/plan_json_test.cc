// The plan's JSON comes from another process: whatever the bytes, an error or a sound plan, never a crash.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "base/error.h"
#include "model/memory_plan.h"
#include "nlohmann/json.hpp"
#include "tests/model/shapes.h"

namespace longhaul {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

MemoryPlan TinyPlan() {
  ModelShape shape = SmolLm2Shape();
  shape.layers = 3;
  TrainShape train;
  train.sequence_length = 100;
  auto plan = MakePlan(shape, train, SmallCpu(), {0, 0, PlanShare::kBalanced});
  EXPECT_TRUE(plan.ok()) << plan.status();
  return *plan;
}

TEST(PlanJson, RoundTripsExactly) {
  const std::string text = MemoryPlanToJson(TinyPlan());
  const auto read = MemoryPlanFromJson(text);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(MemoryPlanToJson(*read), text);
  ASSERT_EQ(read->parts.size(), TinyPlan().parts.size());
  EXPECT_LT(text.size(), 16384u);
}

TEST(PlanJson, RefusesEveryEditOfTheLayout) {
  const json good = json::parse(MemoryPlanToJson(TinyPlan()));
  const auto refused = [](const json& object) { return !MemoryPlanFromJson(object.dump()).ok(); };
  EXPECT_FALSE(refused(good));
  for (size_t i = 0; i < good["regions"].size(); ++i) {
    for (const char* key : {"offset_bytes", "bytes", "live"}) {
      json bad = good;
      bad["regions"][i][key] = bad["regions"][i][key].get<int64_t>() + 64;
      EXPECT_TRUE(refused(bad)) << i << key;
    }
    json bad = good;
    bad["regions"].erase(i);
    EXPECT_TRUE(refused(bad)) << i;
    bad = good;
    bad["regions"][i]["name"] = "elsewhere";
    EXPECT_TRUE(refused(bad)) << i;
  }
  json bad = good;
  bad["arena_bytes"] = good["arena_bytes"].get<int64_t>() - 64;
  EXPECT_TRUE(refused(bad));
  bad = good;
  bad["choices"]["keep_all_layers"] = 4;
  EXPECT_TRUE(refused(bad));
  bad = good;
  bad["version"] = kPlanVersion + 1;
  EXPECT_THAT(std::string(MemoryPlanFromJson(bad.dump()).status().message()), HasSubstr("this build runs version"));
}

TEST(PlanJson, SurvivesMutatedBytes) {
  const std::string text = MemoryPlanToJson(TinyPlan());
  std::mt19937 random(20261123);
  int accepted = 0;
  for (int i = 0; i < 3000; ++i) {
    std::string bad = text;
    const int edits = 1 + static_cast<int>(random() % 4);
    for (int e = 0; e < edits; ++e) {
      const size_t at = random() % bad.size();
      switch (random() % 4) {
        case 0:
          bad[at] = static_cast<char>(random());
          break;
        case 1:
          bad.erase(at, 1 + random() % 40);
          break;
        case 2:
          bad.insert(at, std::to_string(random()));
          break;
        default:
          bad[at] = "0123456789-e.\"{}[],:"[random() % 20];
          break;
      }
      if (bad.empty()) bad = "x";
    }
    const auto plan = MemoryPlanFromJson(bad);
    if (!plan.ok()) continue;
    ++accepted;  // an edit of a free field, such as step_seconds or rope.theta
    EXPECT_EQ(plan->regions.size(), TinyPlan().regions.size());
  }
  EXPECT_LT(accepted, 1500);
}

TEST(PlanJson, SurvivesMutatedValues) {
  const json good = json::parse(MemoryPlanToJson(TinyPlan()));
  const json values[] = {json(-1),     json(0),          json(INT64_MAX), json(UINT64_MAX),     json(1e300),
                         json(-1e300), json("9"),        json(nullptr),   json(true),           json(json::array()),
                         json(1),      json(1073741824), json(4096),      json(json::object()), json(0.5)};
  const json flat = good.flatten();
  for (const auto& [pointer, unused] : flat.items()) {
    for (const json& value : values) {
      json bad = good;
      bad[json::json_pointer(pointer)] = value;
      const auto plan = MemoryPlanFromJson(bad.dump());
      if (plan.ok()) {
        EXPECT_LE(plan->arena_bytes, int64_t{1} << 50) << pointer;
      }
    }
  }
}

TEST(PlanJson, RefusesDeepAndLargeText) {
  EXPECT_FALSE(MemoryPlanFromJson(std::string(900000, '[')).ok());
  EXPECT_THAT(std::string(MemoryPlanFromJson(std::string(2 << 20, ' ')).status().message()), HasSubstr("at most"));
  EXPECT_FALSE(MemoryPlanFromJson("").ok());
  EXPECT_FALSE(MemoryPlanFromJson("null").ok());
}

}  // namespace
}  // namespace longhaul
