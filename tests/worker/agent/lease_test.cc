// Lease arithmetic on a clock that moves by hand: a lease counts from the moment its Sync was sent.
#include <gtest/gtest.h>

#include "tests/worker/agent/clocked_fixture.h"

namespace longhaul::agent {
namespace {

class LeaseTest : public ClockedAgentTest {
 protected:
  LeaseTest() {
    Turn();  // the session opens
    Turn();  // a Sync is parked
    parked_at_ = clock_.BootNanos();
    clock_.AdvanceMillis(7'000);
    Start("deaf\n");  // answers it, seven seconds later
    Turn();
  }

  int64_t Deadline() const { return dir().ReadLease().value_or(v1::LeaseFile()).deadline_boot_nanos(); }

  static constexpr int64_t kLease = int64_t{60'000} * 1'000'000;
  int64_t parked_at_ = 0;
};

TEST_F(LeaseTest, TheFirstLeaseCountsFromTheSyncThatBroughtTheStart) { EXPECT_EQ(Deadline(), parked_at_ + kLease); }

TEST_F(LeaseTest, AnAnswerExtendsFromItsOwnSyncNotFromNow) {
  clock_.AdvanceMillis(1'000);
  Turn();  // the next Sync leaves
  const int64_t sent = clock_.BootNanos();
  clock_.AdvanceMillis(9'000);
  EXPECT_EQ(Deadline(), parked_at_ + kLease);  // parked: nothing extends it
  v1::AttemptKey other;
  other.set_job_id("other");
  scheduler_.Stop(other, v1::STOP_MODE_CANCEL);  // any command answers it
  Turn();
  EXPECT_GE(Deadline(), sent - 1'000'000'000 + kLease);
  EXPECT_LE(Deadline(), sent + kLease);
}

TEST_F(LeaseTest, NoAnswerNoLease) {
  const int64_t before = Deadline();
  scheduler_.set_down(true);
  for (int i = 0; i < 100; ++i) {
    clock_.AdvanceMillis(1'000);
    Turn();
  }
  EXPECT_EQ(Deadline(), before);
  EXPECT_GT(clock_.BootNanos(), before);  // it has run out; the trainer holds by itself
  scheduler_.set_down(false);
  scheduler_.set_hold(false);
  for (int i = 0; i < 30; ++i) {
    clock_.AdvanceMillis(1'000);
    Turn();
  }
  EXPECT_GT(Deadline(), clock_.BootNanos());
  scheduler_.set_hold(true);
}

TEST_F(LeaseTest, ALaterAnswerToAnEarlierSyncDoesNotShortenIt) {
  scheduler_.set_hold(false);
  int64_t last = Deadline();
  for (int i = 0; i < 50; ++i) {
    clock_.AdvanceMillis(300);
    Turn();
    EXPECT_GE(Deadline(), last);
    last = Deadline();
  }
  EXPECT_GT(last, parked_at_ + kLease);
  scheduler_.set_hold(true);
}

}  // namespace
}  // namespace longhaul::agent
