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
    slots.push_back(*limits_.TakeTransfer(local));
    slots.push_back(*limits_.TakeLogStream(local));
  }
  // But for streams: a connection has those of a caller.
  for (int i = 0; i < 100; ++i) slots.push_back(*limits_.TakeStream(local, "127.0.0.1:" + std::to_string(i / 3)));
  EXPECT_EQ(ErrorReason(limits_.TakeStream(local, "127.0.0.1:0").status()), "TOO_MANY_STREAMS");
}

TEST_F(CallLimitsTest, StreamsAndTransfersAreGivenBack) {
  std::vector<CallLimits::Slot> streams;
  for (int i = 0; i < 3; ++i) streams.push_back(*limits_.TakeStream(Named("a"), ""));
  EXPECT_EQ(ErrorReason(limits_.TakeStream(Named("a"), "").status()), "TOO_MANY_STREAMS");
  EXPECT_TRUE(limits_.TakeStream(Named("b"), "").ok());
  {
    const auto first = limits_.TakeTransfer(Named("a"));
    const auto second = limits_.TakeTransfer(Named("a"));
    ASSERT_TRUE(first.ok() && second.ok()) << "transfers are counted beside streams";
    EXPECT_EQ(ErrorReason(limits_.TakeTransfer(Named("a")).status()), "TOO_MANY_TRANSFERS");
  }
  EXPECT_TRUE(limits_.TakeTransfer(Named("a")).ok());
  streams.pop_back();
  EXPECT_TRUE(limits_.TakeStream(Named("a"), "").ok());
}

TEST_F(CallLimitsTest, AnIpv6HostIsItsNetwork) {
  EXPECT_EQ(Calls(Named("a", "2001:db8::1"), 100), 20);
  EXPECT_EQ(Calls(Named("a", "2001:db8::2"), 100), 0);
  EXPECT_EQ(Calls(Named("a", "2001:db8:0:1::1"), 100), 20);
}

// Of one shared token.
Caller WithSession(const std::string& session) {
  Caller caller = Named("fleet", "2001:db8::1");
  caller.session = session;
  return caller;
}

TEST_F(CallLimitsTest, WorkersOfOneNetworkAreCallersOfTheirOwn) {
  EXPECT_EQ(Calls(WithSession("s-1"), 100), 20);
  EXPECT_EQ(Calls(WithSession("s-2"), 100), 20);
  EXPECT_EQ(Calls(WithSession(""), 100), 20) << "who opens a session";
  Caller bound = WithSession("s-3");
  bound.worker_id = "gpu-1";
  EXPECT_EQ(Calls(bound, 100), 20);
  bound.session = "s-4";
  EXPECT_EQ(Calls(bound, 100), 0) << "another session makes no other worker of it";
  bound.worker_id = "gpu-2";
  EXPECT_EQ(Calls(bound, 100), 20);
}

TEST_F(CallLimitsTest, WorkersThatShareANameHaveABoundTogether) {
  int taken = 0;
  for (int i = 0; i < 3 * limits::kMaxSharersCallTimes; ++i) {
    taken += Calls(WithSession("s-" + std::to_string(i)), 100);
  }
  EXPECT_EQ(taken, 20 * limits::kMaxSharersCallTimes);
  CallLimits limits({.transfers = 2, .transfers_of_sharers = 3}, &clock_);
  std::vector<CallLimits::Slot> slots;
  for (int i = 0; i < 2; ++i) slots.push_back(*limits.TakeTransfer(WithSession("s-1")));
  EXPECT_EQ(ErrorReason(limits.TakeTransfer(WithSession("s-1")).status()), "TOO_MANY_TRANSFERS");
  slots.push_back(*limits.TakeTransfer(WithSession("s-2")));
  EXPECT_EQ(ErrorReason(limits.TakeTransfer(WithSession("s-3")).status()), "TOO_MANY_TRANSFERS");
  EXPECT_TRUE(limits.TakeTransfer(WithSession("")).ok());
  slots.erase(slots.begin());
  EXPECT_TRUE(limits.TakeTransfer(WithSession("s-3")).ok());
}

TEST_F(CallLimitsTest, ReadersOfLogsAreFewOfACallerAndOfAll) {
  CallLimits limits({.log_streams = 2, .log_streams_of_all = 4, .log_streams_of_name = 3}, &clock_);
  const auto refusal = [&limits](const Caller& caller) { return limits.TakeLogStream(caller).status(); };
  std::vector<CallLimits::Slot> slots;
  for (int i = 0; i < 2; ++i) slots.push_back(*limits.TakeLogStream(Named("a")));
  EXPECT_EQ(refusal(Named("a")).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(ErrorReason(refusal(Named("a"))), "TOO_MANY_LOG_STREAMS");
  slots.push_back(*limits.TakeLogStream(Named("a", "10.0.0.2")));
  EXPECT_EQ(ErrorReason(refusal(Named("a", "10.0.0.3"))), "TOO_MANY_LOG_STREAMS") << "of one name on all hosts";
  slots.push_back(*limits.TakeLogStream(Named("b")));
  EXPECT_EQ(ErrorReason(refusal(Named("c"))), "TOO_MANY_LOG_STREAMS") << "of all";
  Caller local = Named("local");
  local.local = true;
  for (int i = 0; i < 10; ++i) {
    const auto slot = limits.TakeLogStream(local);
    ASSERT_TRUE(slot.ok()) << "the operator sees a log whoever else does";
    slots.push_back(*slot);
  }
  slots.erase(slots.begin());
  EXPECT_TRUE(refusal(Named("c")).ok()) << "what a refused one had taken was given back";
  EXPECT_TRUE(refusal(Named("a")).ok());
}

TEST_F(CallLimitsTest, ANameHasABoundOnAllOfItsHosts) {
  CallLimits limits({.streams_of_name = 5, .transfers_of_name = 3}, &clock_);
  std::vector<CallLimits::Slot> slots;
  const auto hosts = [&](const std::string& name, auto take) {
    int taken = 0;
    for (int i = 0; i < 100; ++i) {
      auto slot = take(Named(name, "10.0.0." + std::to_string(i)));
      if (!slot.ok()) continue;
      slots.push_back(*std::move(slot));
      ++taken;
    }
    return taken;
  };
  const auto stream = [&](const Caller& caller) { return limits.TakeStream(caller, ""); };
  const auto transfer = [&](const Caller& caller) { return limits.TakeTransfer(caller); };
  EXPECT_EQ(hosts("a", stream), 5);
  EXPECT_EQ(hosts("b", stream), 5);
  EXPECT_EQ(hosts("a", transfer), 3);
  EXPECT_EQ(hosts("b", transfer), 3);
  EXPECT_EQ(ErrorReason(stream(Named("a", "10.1.0.1")).status()), "TOO_MANY_STREAMS");
  EXPECT_EQ(ErrorReason(transfer(Named("a", "10.1.0.1")).status()), "TOO_MANY_TRANSFERS");
  slots.clear();
  EXPECT_TRUE(stream(Named("a", "10.1.0.1")).ok());
  EXPECT_TRUE(transfer(Named("a", "10.1.0.1")).ok());
}

TEST_F(CallLimitsTest, ClientsLeaveTransfersToTheWorkers) {
  // As the server has them: no name and no number of names takes all.
  CallLimits limits({}, &clock_);
  std::vector<CallLimits::Slot> slots;
  for (int i = 0; i < 4 * limits::kMaxTransfers; ++i) {
    auto slot = limits.TakeTransfer(Named("token:" + std::to_string(i), "10.0.0." + std::to_string(i)));
    if (slot.ok()) slots.push_back(*std::move(slot));
  }
  EXPECT_EQ(static_cast<int>(slots.size()), limits::kMaxClientTransfers);
  EXPECT_LT(limits::kMaxClientTransfers, limits::kMaxTransfers);
  Caller worker = Named("fleet", "10.1.0.1");
  worker.scopes = static_cast<unsigned>(Scope::kWorker);
  EXPECT_TRUE(limits.TakeTransfer(worker).ok());
  int taken = 0;
  for (int i = 0; i < 4 * limits::kMaxTransfers; ++i) {
    worker.host = "10.1.1." + std::to_string(i);
    auto slot = limits.TakeTransfer(worker);
    if (!slot.ok()) continue;
    slots.push_back(*std::move(slot));
    ++taken;
  }
  EXPECT_EQ(taken, limits::kMaxWorkerTransfersPerName);
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
