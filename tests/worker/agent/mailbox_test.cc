#include "worker/agent/mailbox.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "base/env.h"
#include "tests/worker/attempt/temp_dir.h"
#include "worker/agent/task_pool.h"

namespace longhaul::agent {
namespace {

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
    mailbox.Wait(60'000);
    mailbox.Drain();
  }
  poster.join();
  mailbox.WatchDir(temp.path());
  std::thread writer([&] { EXPECT_TRUE(WriteFileAtomic(temp.At("f"), "x").ok()); });
  mailbox.Wait(60'000);  // a minute: the test would time out
  writer.join();
  EXPECT_TRUE(FileExists(temp.At("f")) || !ListDir(temp.path())->empty());
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
    done.Wait(60'000);
  }
  EXPECT_EQ(sum, 5050);
}

}  // namespace
}  // namespace longhaul::agent
