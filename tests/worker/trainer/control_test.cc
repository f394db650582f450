#include "worker/trainer/control.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <csignal>
#include <thread>

#include "base/env.h"
#include "base/limits.h"
#include "tests/worker/attempt/temp_dir.h"

namespace longhaul::trainer {
namespace {

constexpr int64_t kHour = limits::kOrphanMs * 1'000'000;

TEST(EvaluateLeaseTest, TheFourStates) {
  v1::LeaseFile lease;
  lease.set_lease_epoch(3);
  lease.set_deadline_boot_nanos(1'000);
  EXPECT_EQ(EvaluateLease(lease, 3, 999), LeaseState::kValid);
  EXPECT_EQ(EvaluateLease(lease, 3, 1'000), LeaseState::kExpired);
  EXPECT_EQ(EvaluateLease(lease, 3, 999 + kHour), LeaseState::kExpired);
  EXPECT_EQ(EvaluateLease(lease, 3, 1'000 + kHour), LeaseState::kOrphaned);
  EXPECT_EQ(EvaluateLease(lease, 4, 0), LeaseState::kLost);
  EXPECT_EQ(EvaluateLease(lease, 2, 0), LeaseState::kLost);
  EXPECT_EQ(EvaluateLease(std::nullopt, 3, 0), LeaseState::kLost);
}

class ControlTest : public ::testing::Test {
 protected:
  void Lease(int64_t deadline, int64_t epoch = 1) {
    v1::LeaseFile lease;
    lease.set_lease_epoch(epoch);
    lease.set_deadline_boot_nanos(deadline);
    ASSERT_TRUE(dir_.WriteLease(lease).ok());
  }
  TempDir temp_;
  attempt::AttemptDir dir_{temp_.path()};
  FakeClock clock_;
  SignalInbox signals_;
};

TEST_F(ControlTest, EpochZeroHasNoLease) {
  Control control(dir_, 0, &clock_, &signals_);
  clock_.AdvanceMillis(10 * limits::kOrphanMs);
  EXPECT_EQ(control.AtStepBoundary(), Decision::kContinue);
}

TEST_F(ControlTest, AnEpochWithoutALeaseFileIsLost) {
  EXPECT_EQ(Control(dir_, 1, &clock_, &signals_).AtStepBoundary(), Decision::kLeaseLost);
}

TEST_F(ControlTest, WhatCannotBeReadLeavesTheLastLeaseInForce) {
  Lease(clock_.BootNanos() + 5'000'000);
  Control control(dir_, 1, &clock_, &signals_);
  ASSERT_EQ(control.AtStepBoundary(), Decision::kContinue);
  // A folder in its place: there, and no file that could be read.
  ASSERT_TRUE(RemoveFile(dir_.LeasePath()).ok());
  ASSERT_TRUE(CreateDirs(dir_.LeasePath()).ok());
  EXPECT_EQ(control.AtStepBoundary(), Decision::kContinue);
  clock_.AdvanceMillis(5);
  EXPECT_EQ(control.AtStepBoundary(), Decision::kHold);
  // One that never could be read has run out from the start.
  EXPECT_EQ(Control(dir_, 1, &clock_, &signals_).AtStepBoundary(), Decision::kHold);
  clock_.AdvanceMillis(limits::kOrphanMs);
  EXPECT_EQ(control.AtStepBoundary(), Decision::kLeaseLost);
}

// After a reboot the clock is far behind the deadline of before, and nobody has extended it since.
TEST_F(ControlTest, ALeaseOfAnotherBootHasRunOut) {
  v1::LeaseFile lease;
  lease.set_lease_epoch(1);
  lease.set_deadline_boot_nanos(clock_.BootNanos() + int64_t{1'000'000'000'000});
  lease.set_boot_id("another boot");
  ASSERT_TRUE(dir_.WriteLease(lease).ok());
  Control control(dir_, 1, &clock_, &signals_);
  EXPECT_EQ(control.AtStepBoundary(), Decision::kHold);
  lease.set_boot_id(attempt::BootId());
  ASSERT_TRUE(dir_.WriteLease(lease).ok());
  EXPECT_EQ(control.AtStepBoundary(), Decision::kContinue);
  EXPECT_FALSE(attempt::BootId().empty());
}

TEST_F(ControlTest, HoldsOnceTheLeaseHasRunOutAndGoesOnWhenItIsExtended) {
  Lease(clock_.BootNanos() + 5'000'000);
  Control control(dir_, 1, &clock_, &signals_);
  EXPECT_EQ(control.AtStepBoundary(), Decision::kContinue);
  clock_.AdvanceMillis(5);
  EXPECT_EQ(control.AtStepBoundary(), Decision::kHold);
  std::thread agent([this] { Lease(clock_.BootNanos() + 5'000'000); });
  EXPECT_EQ(control.Hold(), Decision::kContinue);
  agent.join();
  EXPECT_EQ(control.AtStepBoundary(), Decision::kContinue);
}

TEST_F(ControlTest, AnHourWithoutALeaseIsTheEnd) {
  Lease(clock_.BootNanos());
  Control control(dir_, 1, &clock_, &signals_);
  clock_.AdvanceMillis(limits::kOrphanMs - 1);
  EXPECT_EQ(control.AtStepBoundary(), Decision::kHold);
  clock_.AdvanceMillis(1);
  EXPECT_EQ(control.Hold(), Decision::kLeaseLost);
}

TEST_F(ControlTest, AnotherEpochAndAVanishedLeaseAreTheEnd) {
  Lease(clock_.BootNanos() + 1'000'000'000, 2);
  EXPECT_EQ(Control(dir_, 1, &clock_, &signals_).AtStepBoundary(), Decision::kLeaseLost);
  Control control(dir_, 2, &clock_, &signals_);
  EXPECT_EQ(control.AtStepBoundary(), Decision::kContinue);
  ASSERT_TRUE(RemoveFile(dir_.LeasePath()).ok());
  EXPECT_EQ(control.AtStepBoundary(), Decision::kLeaseLost);
}

TEST_F(ControlTest, ASignalEndsTheHold) {
  Lease(clock_.BootNanos());
  Control control(dir_, 1, &clock_, &signals_);
  ASSERT_EQ(control.AtStepBoundary(), Decision::kHold);
  ASSERT_EQ(::kill(::getpid(), SIGTERM), 0);
  EXPECT_EQ(control.Hold(), Decision::kStop);
  EXPECT_FALSE(control.CancelAsked());
  ASSERT_EQ(::kill(::getpid(), SIGUSR1), 0);
  EXPECT_TRUE(control.CancelAsked());
  EXPECT_EQ(control.AtStepBoundary(), Decision::kCancel);  // outranks the stop
}

}  // namespace
}  // namespace longhaul::trainer
