// Seeded runs of the whole control plane (world.h), in memory and on a disk that loses power. LONGHAUL_SIMULATION_SEEDS
// and LONGHAUL_POWER_CUTS change how many; a failing seed prints its shortest trace (LONGHAUL_SIMULATION_SHRINK=0: only
// itself).
#include <algorithm>
#include <cstdlib>
#include <string>

#include "base/env.h"
#include "gtest/gtest.h"
#include "tests/simulation/shrink.h"
#include "tests/simulation/trace.h"
#include "tests/simulation/world.h"

namespace longhaul::simulation {
namespace {

constexpr uint64_t kSeeds = 1'000;
constexpr uint64_t kPowerCuts = 60;

uint64_t CountFrom(const char* variable, uint64_t otherwise) {
  const char* text = std::getenv(variable);
  return text == nullptr ? otherwise : std::strtoull(text, nullptr, 10);
}

std::string Told(const Trace& trace, const Outcome& outcome) {
  if (CountFrom("LONGHAUL_SIMULATION_SHRINK", 1) != 0) return Explain(trace);
  return "seed " + std::to_string(trace.seed) + ": " + outcome.violations[0] + "\n" + outcome.notes;
}

TEST(SimulationTest, SeededRuns) {
  const uint64_t seeds = CountFrom("LONGHAUL_SIMULATION_SEEDS", kSeeds);
  int64_t simulated_seconds = 0;
  int64_t jobs = 0;
  for (uint64_t seed = 1; seed <= seeds; ++seed) {
    const Trace trace = MakeTrace(seed, false);
    const Outcome outcome = Simulate(trace);
    ASSERT_TRUE(outcome.violations.empty()) << Told(trace, outcome);
    simulated_seconds += outcome.simulated_seconds;
    jobs += outcome.jobs;
  }
  EXPECT_GT(jobs, static_cast<int64_t>(seeds)) << "runs without jobs prove nothing";
  RecordProperty("simulated_weeks", static_cast<int>(simulated_seconds / (7 * 86'400)));
}

TEST(SimulationTest, PowerCuts) {
  const uint64_t wanted = CountFrom("LONGHAUL_POWER_CUTS", kPowerCuts);
  uint64_t cuts = 0;
  for (uint64_t seed = 1; cuts < wanted; ++seed) {
    ASSERT_LE(seed, 10 * wanted + 10) << "hardly any run loses power";
    const Trace trace = MakeTrace(seed, true);
    const Outcome outcome = Simulate(trace);
    ASSERT_TRUE(outcome.violations.empty()) << Told(trace, outcome);
    cuts += static_cast<uint64_t>(outcome.power_cuts);
  }
  RecordProperty("power_cuts", static_cast<int>(cuts));
}

// What once failed stays here.
TEST(SimulationTest, KeptTraces) {
  const std::string folder = std::string(LONGHAUL_SOURCE_DIR) + "/tests/simulation/traces";
  const absl::StatusOr<std::vector<std::string>> names = ListDir(folder);
  ASSERT_TRUE(names.ok()) << names.status();
  ASSERT_FALSE(names->empty());
  for (const std::string& name : *names) {
    SCOPED_TRACE(name);
    const absl::StatusOr<std::string> text = ReadFile(JoinPath(folder, name), 1 << 20);
    ASSERT_TRUE(text.ok()) << text.status();
    const absl::StatusOr<Trace> trace = FromText(*text);
    ASSERT_TRUE(trace.ok()) << trace.status();
    const Outcome outcome = SimulateIsolated(*trace);
    EXPECT_TRUE(outcome.violations.empty()) << outcome.violations[0] << "\n" << outcome.notes;
  }
}

TEST(SimulationTest, ARunRepeatsItself) {
  for (const bool disk : {false, true}) {
    const Trace trace = MakeTrace(7, disk);
    const Outcome first = Simulate(trace);
    const Outcome second = Simulate(trace);
    EXPECT_EQ(first.digest, second.digest);
    if (!disk) {  // else they name the folder
      EXPECT_EQ(first.notes, second.notes);
    }
    EXPECT_NE(first.digest, Simulate(MakeTrace(8, disk)).digest);
  }
}

TEST(SimulationTest, ATraceIsText) {
  const Trace trace = MakeTrace(3, true);
  const absl::StatusOr<Trace> back = FromText(ToText(trace));
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_EQ(ToText(*back), ToText(trace));
  EXPECT_EQ(back->seed, 3u);
  EXPECT_TRUE(back->disk);
  EXPECT_FALSE(FromText("").ok());
  EXPECT_FALSE(FromText("longhaul simulation 1\nseed x memory\n").ok());
  EXPECT_FALSE(FromText("longhaul simulation 1\nseed 1 memory\nexplode 1 2 after 3\n").ok());
  EXPECT_FALSE(FromText("longhaul simulation 1\nseed 1 memory\ncreate 1\n").ok());
}

TEST(SimulationTest, ShrinkingLeavesTheCause) {
  Trace trace = MakeTrace(5, false);
  trace.steps.insert(trace.steps.begin() + 9, {Op::kDrain, 111, 1, 5});
  trace.steps.insert(trace.steps.begin() + 31, {Op::kStall, 222, 2, 5});
  int calls = 0;
  const Trace shrunk = Shrink(trace, [&](const Trace& candidate) {
    ++calls;
    const auto drain = std::find_if(candidate.steps.begin(), candidate.steps.end(),
                                    [](const Step& step) { return step.op == Op::kDrain && step.a == 111; });
    return std::any_of(drain, candidate.steps.end(), [](const Step& step) { return step.a == 222; });
  });
  ASSERT_EQ(shrunk.steps.size(), 2u) << ToText(shrunk);
  EXPECT_EQ(shrunk.steps[0].op, Op::kDrain);
  EXPECT_EQ(shrunk.steps[1].op, Op::kStall);
  EXPECT_EQ(shrunk.steps[1].after_permille, 0u);
  EXPECT_LT(calls, 300);
}

}  // namespace
}  // namespace longhaul::simulation
