#include "worker/agent/mailbox.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "base/clock.h"
#include "base/env.h"
#include "tests/worker/attempt/temp_dir.h"
#include "worker/agent/task_pool.h"

namespace longhaul::agent {
namespace {

constexpr int64_t kLongestWaitMs = 60'000;

// Whether a Wait was ended, however slow the machine: not by its time.
bool EndsByItself(Mailbox& mailbox) {
  const RealClock clock;
  const int64_t begin = clock.BootNanos();
  mailbox.Wait(kLongestWaitMs);
  return clock.BootNanos() - begin < kLongestWaitMs * 1'000'000;
}

TEST(MailboxTest, RunsWhatIsPostedInOrderOnTheDrainingThread) {
  Mailbox mailbox;
  std::vector<int> order;
  mailbox.Post([&] {
    order.push_back(1);
    mailbox.Post([&] { order.push_back(3); });
  });
  mailbox.Post([&] { order.push_back(2); });
  mailbox.Drain();
  EXPECT_EQ(order, (std::vector<int>{1, 2}));
  mailbox.Drain();
  EXPECT_EQ(order, (std::vector<int>{1, 2, 3}));
}

TEST(MailboxTest, APostAndAChangedFileEndAWait) {
  TempDir temp;
  Mailbox mailbox;
  bool ran = false;
  std::thread poster([&] { mailbox.Post([&] { ran = true; }); });
  while (!ran) {
    ASSERT_TRUE(EndsByItself(mailbox)) << "a post does not end a wait";
    mailbox.Drain();
  }
  poster.join();
  mailbox.WatchDir(temp.path());
  std::thread writer([&] { EXPECT_TRUE(WriteFileAtomic(temp.At("f"), "x").ok()); });
  EXPECT_TRUE(EndsByItself(mailbox)) << "a file that is written does not end a wait";
  writer.join();
}

TEST(TaskPoolTest, RunsEverythingOnItsThreads) {
  std::atomic<int> sum = 0;
  Mailbox done;
  {
    TaskPool pool(3);
    for (int i = 1; i <= 100; ++i) {
      pool.Run([&, i] {
        sum += i;
        if (sum == 5050) done.Post([] {});
      });
    }
    EXPECT_TRUE(EndsByItself(done));
  }
  EXPECT_EQ(sum, 5050);
}

}  // namespace
}  // namespace longhaul::agent
