// Many fleets and queues by seed; after every pass: nothing overcommitted, now or at any reserved start; the order of
// classes, shares and age; a reason for everybody; the head of the queue is never put off; only legal preemptions; a
// kept table says what a fresh one says; and in the end everybody has run.
#include "gtest/gtest.h"
#include "tests/server/core/scheduler_world.h"

namespace longhaul::server {
namespace {

constexpr int kSeeds = 120;
constexpr int kMostPasses = 3'000;

struct Totals {
  int passes = 0;
  int preemptions = 0;
  int backfills = 0;
  int starts = 0;
};

Totals RunMany(WorldOptions options) {
  Totals totals;
  for (uint64_t seed = 1; seed <= kSeeds && !::testing::Test::HasFailure(); ++seed) {
    SchedulerWorld world(seed, options);
    world.Run(kMostPasses);
    totals.passes += world.passes();
    totals.preemptions += world.preemptions();
    totals.backfills += world.backfills();
    totals.starts += world.starts();
  }
  return totals;
}

TEST(SchedulerPropertyTest, OneQueueWithBackfill) {
  const Totals totals = RunMany({.one_queue = true});
  EXPECT_GT(totals.backfills, 100) << "else this tests nothing";
}

TEST(SchedulerPropertyTest, ClassesSharesAndPreemption) {
  const Totals totals = RunMany({.jobs = 80});
  EXPECT_GT(totals.preemptions, 50) << "else this tests nothing";
}

TEST(SchedulerPropertyTest, Quotas) { RunMany({.quotas = true}); }

TEST(SchedulerPropertyTest, WorkersComeAndGoAndAttemptsFail) { RunMany({.trouble = true}); }

TEST(SchedulerPropertyTest, MoreQueueThanReservations) { RunMany({.workers = 3, .jobs = 150, .shapes = 40}); }

}  // namespace
}  // namespace longhaul::server
