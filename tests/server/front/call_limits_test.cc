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

}  // namespace
}  // namespace longhaul::server
