#include "base/failpoints.h"

#include <gtest/gtest.h>
#include <signal.h>

#include <thread>

#include "base/clock.h"
#include "base/error.h"
#include "base/process.h"
#include "tests/base/test_support.h"

namespace longhaul {
namespace {

class FailpointsTest : public testing::Test {
 protected:
  void TearDown() override { DisarmFailpoints(); }
};

TEST_F(FailpointsTest, DisarmedIsOk) { EXPECT_TRUE(Failpoint("after_commit").ok()); }

TEST_F(FailpointsTest, ErrorNamesTheFailpoint) {
  ArmFailpoint("after_commit", "error");
  const absl::Status status = Failpoint("after_commit");
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(ErrorReason(status), "FAILPOINT");
  EXPECT_NE(std::string(status.message().data(), status.message().size()).find("after_commit"), std::string::npos);
  EXPECT_TRUE(Failpoint("before_commit").ok());
  DisarmFailpoints();
  EXPECT_TRUE(Failpoint("after_commit").ok());
}

TEST_F(FailpointsTest, WhatIsArmedIsToldWithoutReachingIt) {
  EXPECT_FALSE(FailpointIsArmed("late"));
  ArmFailpoint("late", "sleep:1");
  EXPECT_TRUE(FailpointIsArmed("late"));
  EXPECT_FALSE(FailpointIsArmed("later"));
  EXPECT_EQ(FailpointHits("late"), 0);
  DisarmFailpoints();
  EXPECT_FALSE(FailpointIsArmed("late"));
}

TEST_F(FailpointsTest, SleepTakesAtLeastItsTime) {
  const RealClock clock;
  ArmFailpoint("slow", "sleep:5");
  const int64_t before = clock.BootNanos();
  EXPECT_TRUE(Failpoint("slow").ok());
  EXPECT_GE(clock.BootNanos() - before, 5'000'000);
}

TEST_F(FailpointsTest, ASleepEndsWhereItIsArmedAnewOrDisarmed) {
  const RealClock clock;
  for (const bool anew : {true, false}) {
    ArmFailpoint("long", "sleep:600000");
    const int64_t before = clock.BootNanos();
    std::thread sleeper([] { EXPECT_TRUE(Failpoint("long").ok()); });
    while (FailpointHits("long") == 0) std::this_thread::yield();
    if (anew) {
      ArmFailpoint("long", "sleep:0");
    } else {
      DisarmFailpoints();
    }
    sleeper.join();
    EXPECT_LT(clock.BootNanos() - before, int64_t{300} * 1'000'000'000);
  }
}

TEST_F(FailpointsTest, CrashKillsTheProcess) {
  const int status = StatusOfForked([] {
    ArmFailpoint("boom", "crash");
    if (!Failpoint("other").ok()) return 1;
    return Failpoint("boom").ok() ? 2 : 3;
  });
  ASSERT_TRUE(WIFSIGNALED(status)) << status;
  EXPECT_EQ(WTERMSIG(status), SIGKILL);
}

TEST_F(FailpointsTest, OnlyTheHitThatIsMeant) {
  ArmFailpoint("third", "error@3");
  ArmFailpoint("twice", "error*2");
  std::string third, twice;
  for (int i = 0; i < 5; ++i) {
    third += Failpoint("third").ok() ? '.' : 'x';
    twice += Failpoint("twice").ok() ? '.' : 'x';
  }
  EXPECT_EQ(third, "..x..");
  EXPECT_EQ(twice, "xx...");
  EXPECT_EQ(FailpointHits("third"), 5);
  EXPECT_EQ(FailpointHits("never armed"), 0);
  ArmFailpoint("third", "error@1");
  EXPECT_EQ(FailpointHits("third"), 0) << "armed anew";
  EXPECT_FALSE(Failpoint("third").ok());
}

TEST_F(FailpointsTest, UnknownActionIsABug) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(ArmFailpoint("boom", "explode"), "failpoint 'boom'");
  EXPECT_DEATH(ArmFailpoint("boom", "sleep:"), "failpoint 'boom'");
  EXPECT_DEATH(ArmFailpoint("boom", "sleep:5s"), "failpoint 'boom'");
  EXPECT_DEATH(ArmFailpoint("boom", "error@0"), "failpoint 'boom'");
  EXPECT_DEATH(ArmFailpoint("boom", "error*x"), "failpoint 'boom'");
}

// The environment is read once a process, so this body runs in a process of its own (the next test starts it).
TEST(FailpointsChild, DISABLED_Body) {
  EXPECT_EQ(Failpoint("two").code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(Failpoint("three").ok());
  if (HasFailure()) return;
  (void)Failpoint("one");
  ADD_FAILURE() << "failpoint one let the process live";
}

TEST_F(FailpointsTest, ArmedByTheEnvironment) {
  SpawnOptions options;
  options.argv = {"/proc/self/exe", "--gtest_also_run_disabled_tests", "--gtest_filter=FailpointsChild.*"};
  options.env = {{"LONGHAUL_FAILPOINTS", "one=crash,two=error,three=sleep:1"}, {"GTEST_OUTPUT", ""}};
  const absl::StatusOr<ProcessId> child = Spawn(options);
  ASSERT_TRUE(child.ok()) << child.status();
  AwaitExit(child->pid);
  const ExitState state = ReapProcess(*child);
  EXPECT_TRUE(state.exited);
  EXPECT_EQ(state.signal, SIGKILL);
  EXPECT_EQ(state.exit_code, -1);
}

}  // namespace
}  // namespace longhaul
