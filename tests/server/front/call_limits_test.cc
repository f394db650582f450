#include "server/call_limits.h"

#include "base/error.h"
#include "gtest/gtest.h"

namespace longhaul::server {
namespace {

Caller Named(const std::string& name, const std::string& host = "10.0.0.1") {
  Caller caller;
  caller.name = name;
  caller.host = host;
  return caller;
}

class CallLimitsTest : public ::testing::Test {
 protected:
  int Calls(const Caller& caller, int tries) {
    int taken = 0;
    for (int i = 0; i < tries; ++i) taken += limits_.TakeCall(caller).ok() ? 1 : 0;
    return taken;
  }
  FakeClock clock_;
  CallLimits limits_{{.calls_per_second = 10, .call_burst = 20, .streams = 3, .transfers = 2}, &clock_};
};

TEST_F(CallLimitsTest, ACallerHasARateOnEachOfItsHosts) {
  EXPECT_EQ(Calls(Named("a"), 100), 20);
  EXPECT_EQ(Calls(Named("b"), 100), 20);
  EXPECT_EQ(Calls(Named("a", "10.0.0.2"), 100), 20);
  clock_.AdvanceMillis(1000);
  EXPECT_EQ(Calls(Named("a"), 100), 10);
  const absl::Status refused = limits_.TakeCall(Named("a"));
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(ErrorReason(refused), "RATE_LIMITED");
}

TEST_F(CallLimitsTest, TheOperatorHasOnlyTheServersLimits) {
  Caller local = Named("local");
  local.local = true;
  EXPECT_EQ(Calls(local, 1000), 1000);
  std::vector<CallLimits::Slot> slots;
  for (int i = 0; i < 100; ++i) {
    const auto slot = limits_.TakeStream(local);
    ASSERT_TRUE(slot.ok());
    slots.push_back(*slot);
  }
}

TEST_F(CallLimitsTest, StreamsAndTransfersAreGivenBack) {
  std::vector<CallLimits::Slot> streams;
  for (int i = 0; i < 3; ++i) streams.push_back(*limits_.TakeStream(Named("a")));
  EXPECT_EQ(ErrorReason(limits_.TakeStream(Named("a")).status()), "TOO_MANY_STREAMS");
  EXPECT_TRUE(limits_.TakeStream(Named("b")).ok());
  {
    const auto first = limits_.TakeTransfer(Named("a"));
    const auto second = limits_.TakeTransfer(Named("a"));
    ASSERT_TRUE(first.ok() && second.ok()) << "transfers are counted beside streams";
    EXPECT_EQ(ErrorReason(limits_.TakeTransfer(Named("a")).status()), "TOO_MANY_TRANSFERS");
  }
  EXPECT_TRUE(limits_.TakeTransfer(Named("a")).ok());
  streams.pop_back();
  EXPECT_TRUE(limits_.TakeStream(Named("a")).ok());
}

TEST_F(CallLimitsTest, AnIpv6HostIsItsNetwork) {
  EXPECT_EQ(Calls(Named("a", "2001:db8::1"), 100), 20);
  EXPECT_EQ(Calls(Named("a", "2001:db8::2"), 100), 0);
  EXPECT_EQ(Calls(Named("a", "2001:db8:0:1::1"), 100), 20);
}

TEST_F(CallLimitsTest, ReadersOfLogsAreFewOfACallerAndOfAll) {
  CallLimits limits({.log_streams = 2, .log_streams_of_all = 3}, &clock_);
  std::vector<CallLimits::Slot> slots;
  for (int i = 0; i < 2; ++i) slots.push_back(*limits.TakeLogStream(Named("a")));
  const absl::Status refused = limits.TakeLogStream(Named("a")).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(ErrorReason(refused), "TOO_MANY_LOG_STREAMS");
  Caller local = Named("local");
  local.local = true;
  slots.push_back(*limits.TakeLogStream(local));
  EXPECT_EQ(ErrorReason(limits.TakeLogStream(local).status()), "TOO_MANY_LOG_STREAMS") << "of all";
  EXPECT_EQ(ErrorReason(limits.TakeLogStream(Named("b")).status()), "TOO_MANY_LOG_STREAMS");
  slots.erase(slots.begin());
  EXPECT_TRUE(limits.TakeLogStream(Named("b")).ok()) << "what a refused one had taken was given back";
  EXPECT_TRUE(limits.TakeLogStream(Named("a")).ok());
}

TEST_F(CallLimitsTest, RefusedCallsHaveSoManyRowsAtOnceAndOneAMinute) {
  const auto rows = [&](const Caller& caller) {
    int taken = 0;
    for (int i = 0; i < 1000; ++i) taken += limits_.TakeRefusedRow(caller) ? 1 : 0;
    return taken;
  };
  EXPECT_EQ(rows(Named("a")), limits::kMaxRefusedRowBurst);
  EXPECT_EQ(rows(Named("b")), limits::kMaxRefusedRowBurst);
  clock_.AdvanceMillis(limits::kRefusedRowEveryMs);
  EXPECT_EQ(rows(Named("a")), 1);
}

}  // namespace
}  // namespace longhaul::server
